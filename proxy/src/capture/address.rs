//! Addresses of this network namespace: whether it has one, and the one of `lo` that the leg to the app comes from.
//!
//! The kernel is asked in the two messages that this takes (rtnetlink(7), `RTM_NEWADDR` and `RTM_DELADDR`): a library
//! that knows all the others would be a tenth of the sidecar.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc::{
    AF_INET6, IFA_ADDRESS, IFA_LOCAL, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
    NLMSG_ERROR, RTM_DELADDR, RTM_NEWADDR,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, recv,
    sendto, socket,
};

/// Index of the loopback interface in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Length of a message's header, and of what describes an address.
const HEADER: usize = 16;

/// Whether an interface of this network namespace has the address.
pub(super) fn exists(address: IpAddr) -> io::Result<bool> {
    let ip = |of: SockaddrStorage| {
        let v4 = of.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| of.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let mut all = getifaddrs()?;
    Ok(all.any(|interface| interface.address.and_then(ip) == Some(address)))
}

/// Gives `lo` the address, if it does not have it.
pub(super) fn add_to_loopback(address: Ipv6Addr) -> Result<(), Errno> {
    match request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address) {
        Err(Errno::EEXIST) => Ok(()),
        done => done,
    }
}

/// Takes the address from `lo`, if it has it.
pub(super) fn remove_from_loopback(address: Ipv6Addr) -> Result<(), Errno> {
    match request(RTM_DELADDR, 0, address) {
        Err(Errno::EADDRNOTAVAIL) => Ok(()),
        done => done,
    }
}

fn request(kind: u16, flags: i32, address: Ipv6Addr) -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let message = message(kind, flags, address);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
    // The kernel has worked it off when it has been sent, and its answer is there.
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let (kind, code) = answer[..length]
        .get(4..6)
        .zip(answer[..length].get(HEADER..HEADER + 4))
        .ok_or(Errno::EPROTO)?;
    if *kind != (NLMSG_ERROR as u16).to_ne_bytes() {
        return Err(Errno::EPROTO);
    }
    let code = code.try_into().map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(-code))
    }
}

/// A header, the interface, and the address, both as the one that it has and as the one that it is reached by.
fn message(kind: u16, flags: i32, address: Ipv6Addr) -> Vec<u8> {
    let flags = (flags | NLM_F_REQUEST | NLM_F_ACK) as u16;
    let mut body = vec![AF_INET6 as u8, 128, 0, 0];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(20_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(address.octets());
    }
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and sender: there is one message, and the kernel knows who sent it.
    message.extend([0; 8]);
    message.extend(body);
    message
}
