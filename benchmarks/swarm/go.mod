module swarm

go 1.24

require (
	golang.org/x/net v0.35.0
	golang.org/x/sys v0.33.0
	google.golang.org/protobuf v1.36.6
)

require golang.org/x/text v0.22.0 // indirect
