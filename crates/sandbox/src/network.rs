//! The network of the node: a bridge that is every pod's gateway, and a network namespace for each pod.
//!
//! Pods have /32 and /128 addresses and reach even each other through the gateway, so all their traffic is routed by the
//! node, where ClusterIPs are translated and a capture sees it. Links go with their namespaces; nothing is cleaned up.

mod capture;
mod netns;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    new_connection,
};
use tulle_runtime::tasks::Tasks;

pub use capture::PacketCapture;
pub(crate) use netns::Netns;

use crate::Error;

/// Name of the bridge.
pub const BRIDGE: &str = "tulle0";
/// Hardware address of the bridge. One that is not set is the lowest of its ports': it would change as pods come and go,
/// and every pod that knows the old one would lose its gateway until it asks again, ten seconds later.
const BRIDGE_MAC: [u8; 6] = [0x02, b'T', b'U', b'L', b'L', b'E'];
/// The node's own addresses, every pod's gateway, DNS server and the host of the control plane.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// As [`GATEWAY_V4`], for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

const POD_PREFIX_V4: u8 = 16;
const POD_PREFIX_V6: u8 = 64;
/// Name of a pod's link inside the pod.
const POD_LINK: &str = "eth0";

/// The addresses of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodIps {
    /// The primary address.
    pub v4: Ipv4Addr,
    /// The other one, unless this kernel has no IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl PodIps {
    /// The addresses of the pod with this number, counted from 2.
    pub(crate) fn of(number: u16, ipv6: bool) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            v4: Ipv4Addr::new(10, 244, high, low),
            v6: ipv6.then(|| Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number)),
        }
    }

    /// The primary address first.
    pub fn all(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }
}

/// The node's side of the network.
#[derive(Debug)]
pub(crate) struct Network {
    links: Handle,
    bridge: u32,
    ipv6: bool,
}

impl Network {
    /// Creates the bridge in the network namespace of the process, which must be the node's own.
    pub(crate) async fn create(tasks: &Tasks) -> Result<Self, Error> {
        let ipv6 = fs::exists("/proc/net/if_inet6").unwrap_or(false);
        node_settings(ipv6)?;
        let (connection, links, _) =
            new_connection().map_err(Error::io("open a netlink socket"))?;
        tasks.spawn("netlink", connection);
        let what = || format!("create bridge {BRIDGE}");
        up(&links, "lo").await?;
        links
            .link()
            .add(
                LinkBridge::new(BRIDGE)
                    .address(BRIDGE_MAC.to_vec())
                    .up()
                    .build(),
            )
            .execute()
            .await
            .map_err(Error::network(what()))?;
        let bridge = index(&links, BRIDGE).await?;
        address(&links, bridge, GATEWAY_V4.into(), POD_PREFIX_V4).await?;
        if ipv6 {
            address(&links, bridge, GATEWAY_V6.into(), POD_PREFIX_V6).await?;
        }
        Ok(Self {
            links,
            bridge,
            ipv6,
        })
    }

    pub(crate) fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Index of the bridge, for a capture.
    pub(crate) fn bridge(&self) -> u32 {
        self.bridge
    }

    /// A network namespace with a link to the bridge; `number` names the node's end of it.
    pub(crate) async fn add_pod(&self, number: u16, ips: PodIps) -> Result<Netns, Error> {
        let netns = Netns::create(pod_settings).await?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(POD_LINK)
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(pod_link(number))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .up()
            .build();
        self.links
            .link()
            .add(veth)
            .execute()
            .await
            .map_err(Error::network(format!("create link {}", pod_link(number))))?;
        netns.run_async(move || configure_pod(ips)).await??;
        Ok(netns)
    }

    /// Takes a pod off the network at once, whoever still holds its namespace.
    pub(crate) async fn remove_pod(&self, number: u16) {
        // A link that is gone is what is wanted.
        if let Ok(link) = index(&self.links, &pod_link(number)).await {
            let _ = self.links.link().del(link).execute().await;
        }
    }
}

fn pod_link(number: u16) -> String {
    format!("pod{number}")
}

async fn configure_pod(ips: PodIps) -> Result<(), Error> {
    let (connection, links, _) =
        new_connection().map_err(Error::io("open a netlink socket in a pod"))?;
    let work = async {
        up(&links, "lo").await?;
        up(&links, POD_LINK).await?;
        let link = index(&links, POD_LINK).await?;
        address(&links, link, ips.v4.into(), 32).await?;
        let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(GATEWAY_V4, 32)
            .output_interface(link)
            .scope(RouteScope::Link)
            .build();
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(GATEWAY_V4)
            .output_interface(link)
            .build();
        let mut routes = vec![gateway, default];
        if let Some(v6) = ips.v6 {
            address(&links, link, v6.into(), 128).await?;
            let gateway = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(GATEWAY_V6, 128)
                .output_interface(link)
                .build();
            let default = RouteMessageBuilder::<Ipv6Addr>::new()
                .gateway(GATEWAY_V6)
                .output_interface(link)
                .build();
            routes.extend([gateway, default]);
        }
        for route in routes {
            let added = links.route().add(route).execute().await;
            added.map_err(Error::network(format!("add a route to pod {}", ips.v4)))?;
        }
        Ok(())
    };
    tokio::select! {
        biased;
        result = work => result,
        () = connection => Err(Error::Missing { kind: "netlink connection of pod", name: ips.v4.to_string() }),
    }
}

async fn index(links: &Handle, name: &str) -> Result<u32, Error> {
    let found = links
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await;
    let link = found.map_err(Error::network(format!("find link {name}")))?;
    link.map(|link| link.header.index)
        .ok_or_else(|| Error::Missing {
            kind: "link",
            name: name.to_owned(),
        })
}

async fn up(links: &Handle, name: &str) -> Result<(), Error> {
    let link = index(links, name).await?;
    let message = LinkUnspec::new_with_index(link).up().build();
    let set = links.link().set(message).execute().await;
    set.map_err(Error::network(format!("bring up link {name}")))
}

async fn address(links: &Handle, link: u32, ip: IpAddr, prefix: u8) -> Result<(), Error> {
    let mut request = links.address().add(link, ip, prefix);
    if ip.is_ipv6() {
        // The address is ours alone; looking for duplicates would only delay it.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    let added = request.execute().await;
    added.map_err(Error::network(format!("add address {ip}/{prefix}")))
}

fn setting(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Privilege {
            what: "change the network settings under /proc/sys/net",
            remedy: "root without CAP_NET_ADMIN cannot (in a container: --cap-add NET_ADMIN, and /proc/sys writable); \
                any other user can where unprivileged user namespaces are allowed",
            source,
        },
        _ => Error::io(format!("write {value} to {path}"))(source),
    })
}

fn node_settings(ipv6: bool) -> Result<(), Error> {
    setting("ipv4/ip_forward", "1")?;
    // Pods are each other's neighbours on the bridge and must still go through the gateway.
    setting("ipv4/conf/all/send_redirects", "0")?;
    setting("ipv4/conf/default/send_redirects", "0")?;
    // Where br_netfilter is loaded it would translate below the bridge, and packets would pass the gateway by.
    for name in ["iptables", "ip6tables", "arptables"] {
        let name = format!("bridge/bridge-nf-call-{name}");
        if fs::exists(format!("/proc/sys/net/{name}")).unwrap_or(false) {
            setting(&name, "0")?;
        }
    }
    if ipv6 {
        setting("ipv6/conf/all/disable_ipv6", "0")?;
        setting("ipv6/conf/all/forwarding", "1")?;
        setting("ipv6/conf/default/accept_dad", "0")?;
    }
    Ok(())
}

fn pod_settings() -> Result<(), Error> {
    // As container runtimes set it: every pod has all ports to itself.
    setting("ipv4/ip_unprivileged_port_start", "0")?;
    // The gateway cannot be kept from saying over IPv6 that there is a shorter way; nobody has to listen.
    setting("ipv4/conf/all/accept_redirects", "0")?;
    if fs::exists("/proc/net/if_inet6").unwrap_or(false) {
        setting("ipv6/conf/all/disable_ipv6", "0")?;
        setting("ipv6/conf/default/accept_dad", "0")?;
        setting("ipv6/conf/default/accept_redirects", "0")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_number_is_in_both_of_its_addresses() {
        let ips = PodIps::of(0x0203, true);
        assert_eq!(ips.v4, Ipv4Addr::new(10, 244, 2, 3));
        assert_eq!(ips.v6.expect("asked for").segments()[7], 0x0203);
        assert_eq!(PodIps::of(2, false).all().count(), 1);
    }
}
