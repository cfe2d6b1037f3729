package builds

import "google.golang.org/grpc"

// Rules are those of methods.
var Rules = rules

// ServiceInfo tells what an endpoint serves.
func ServiceInfo(e *Endpoint) map[string]grpc.ServiceInfo { return e.server.GetServiceInfo() }

// RegistryHosts is how builds find registries.
var RegistryHosts = registryHosts
