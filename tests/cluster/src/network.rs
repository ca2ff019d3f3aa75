//! Addresses, and the wires: a bridge on the machine of the control plane, a link from each node to it, and routes from
//! everywhere to every node's pods. Nothing leads out: what would leave is refused at once by the control plane's machine.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::{Machine, programs};

/// Where Services are.
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd96::/112";
/// Where pods are.
pub(crate) const PODS: &str = "10.244.0.0/16,fd44::/48";
/// The Service of the API server.
pub(crate) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];
/// The Service of the cluster's DNS.
pub(crate) const DNS_SERVICE: &str = "10.96.0.10";
/// The API server, and every node's way to nowhere.
pub(crate) const CONTROL_V4: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// As [`CONTROL_V4`], for IPv6.
pub(crate) const CONTROL_V6: Ipv6Addr = Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, 1);
/// As many as the addresses above have room for.
pub(crate) const MOST_NODES: usize = 200;

const BRIDGE: &str = "nodes";
/// A hardware address of its own: otherwise it would change when a node's link goes, and the others would have to ask.
const BRIDGE_MAC: &str = "02:54:55:4c:4c:45";

/// The addresses of a node and of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    number: u8,
}

impl Addresses {
    /// Those of the node with this number, counted from zero.
    pub(crate) fn of(number: usize) -> Self {
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        let host = number.saturating_add(10);
        Self {
            v4: Ipv4Addr::new(10, 90, 0, host),
            v6: Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, host.into()),
            number,
        }
    }

    /// Where its pods are.
    pub(crate) fn pods(self) -> [String; 2] {
        let number = self.number;
        [
            format!("10.244.{number}.0/24"),
            format!("fd44:0:0:{number:x}::/64"),
        ]
    }

    /// The routes to its pods, for everybody else.
    fn routes(self) -> String {
        let [v4, v6] = self.pods();
        format!(
            "route add {v4} via {}\nroute add {v6} via {}\n",
            self.v4, self.v6
        )
    }
}

/// Connects the machines.
pub(crate) fn connect(control: &Machine, nodes: &[Machine]) -> Result<()> {
    let mut batch = format!(
        "link set lo up\nlink add {BRIDGE} address {BRIDGE_MAC} type bridge\nlink set {BRIDGE} up\n\
        addr add {CONTROL_V4}/24 dev {BRIDGE}\naddr add {CONTROL_V6}/64 dev {BRIDGE} nodad\n"
    );
    for node in nodes {
        let (name, pid) = (node.name(), node.pid());
        writeln!(
            batch,
            "link add {name} type veth peer name eth0 netns {pid}\nlink set {name} master {BRIDGE} up"
        )?;
    }
    for number in 0..nodes.len() {
        batch.push_str(&Addresses::of(number).routes());
    }
    run(control, &batch)?;
    for (number, node) in nodes.iter().enumerate() {
        let own = Addresses::of(number);
        let mut batch = format!(
            "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
            route add default via {CONTROL_V4}\nroute add default via {CONTROL_V6}\n",
            own.v4, own.v6
        );
        for other in (0..nodes.len()).filter(|other| *other != number) {
            batch.push_str(&Addresses::of(other).routes());
        }
        run(node, &batch)?;
    }
    Ok(())
}

/// Takes a node's wire away: what it says from now on nobody hears.
pub(crate) fn cut(control: &Machine, node: &str) -> Result<()> {
    run(control, &format!("link set {node} down\n"))
}

fn run(machine: &Machine, batch: &str) -> Result<()> {
    let ip = programs::find("ip").context("there is no ip")?;
    let mut command = machine.on_network(ip);
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("start nsenter and ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the network of {}: {}--- ip was given\n{batch}---\nnext: the kernel needs bridges, veth and IPv6",
        machine.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_addresses_and_pods_of_its_own() {
        let node = Addresses::of(17);
        assert_eq!(node.v4.to_string(), "10.90.0.27");
        assert_eq!(node.v6.to_string(), "fd90::1b");
        assert_eq!(node.pods(), ["10.244.17.0/24", "fd44:0:0:11::/64"]);
        assert_ne!(Addresses::of(0), Addresses::of(MOST_NODES - 1));
    }
}
