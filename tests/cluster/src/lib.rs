//! Real Kubernetes clusters on one machine, without a container engine and without images from outside.
//!
//! Rooms in the order in which a cluster meets them: the programs that it is made of, what others left behind (`sweep`), the
//! machines that it runs on, their network, certificates, the control plane, the nodes, DNS, and images. A machine is a
//! set of namespaces (network, mounts, processes, name): one for the control plane, whose bridge joins the others, and one
//! for each node. Everything in them is the real thing: etcd, API server, controllers, scheduler, kubelet, containerd,
//! kube-proxy and CoreDNS.
//!
//! Invariant: a cluster ends with the process that started it, however that ends, and nothing of it is then left.

mod cgroups;
mod cluster;
mod component;
mod control_plane;
mod dns;
mod image;
mod machine;
mod network;
mod node;
mod pki;
mod programs;
mod progress;
mod sweep;

pub use cluster::Cluster;
pub use image::Image;
pub use machine::Machine;
pub use programs::{cache, find, missing};
pub use sweep::sweep;
