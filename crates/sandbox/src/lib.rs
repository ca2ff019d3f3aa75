//! Runs pods as network namespaces on one machine, straight from Kubernetes manifests.
