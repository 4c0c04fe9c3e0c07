"""Names of the form `xdstp://authority/type/id?key=value`, and collections of them (xRFC TP1).

Two such names that differ in the order of their context parameters are one. A name that ends in `/*` is a collection: of all resources
whose names lie directly in that directory, with the same parameters.
"""

SCHEME = "xdstp:"


def normal(name: str) -> str:
    """`name` with its context parameters in order; any other name as it is."""
    if not name.startswith(SCHEME) or "?" not in name:
        return name
    path, _, rest = name.partition("?")
    parameters, hash_, directives = rest.partition("#")
    return f"{path}?{'&'.join(sorted(parameters.split('&')))}{hash_}{directives}"


def is_collection(name: str) -> bool:
    """Whether `name` stands for all names in its directory."""
    return name.startswith(SCHEME) and name.partition("?")[0].endswith("/*")


def belongs(name: str, collection: str) -> bool:
    """Whether `name`, in its normal form, is one of `collection`, in its own."""
    path, _, parameters = collection.partition("?")
    its_path, _, its_parameters = name.partition("?")
    directory = path.removesuffix("*")
    return parameters == its_parameters and its_path.startswith(directory) and "/" not in its_path[len(directory) :] and its_path != path
