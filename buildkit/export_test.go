package buildkit

// CheckVisible makes sure that containerd sees what is mounted below a directory.
var CheckVisible = checkVisible
