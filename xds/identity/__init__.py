"""Who is who: certificates, and the authorities that sign them."""
