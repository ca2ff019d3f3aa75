//! The netlink conversation: one batch out, errors back.
//!
//! The kernel works a batch off inside `sendto` and queues an answer for each message that it refuses, so when
//! nothing is queued afterwards the batch was applied.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};

use crate::encode::{self, Batch};
use crate::{Error, Ruleset};

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

pub(crate) fn apply(ruleset: &Ruleset) -> Result<(), Error> {
    exchange(&encode::replace(ruleset)?)
}

pub(crate) fn remove(ruleset: &Ruleset) -> Result<(), Error> {
    exchange(&encode::remove(ruleset))
}

fn exchange(batch: &Batch) -> Result<(), Error> {
    let socket = open()?;
    // A batch is one datagram. Where the size may not be raised the default still holds several hundred rules.
    let size = batch.bytes.len() + 64 * 1024;
    if setsockopt(&socket, sockopt::SndBufForce, &size).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &size);
    }
    sendto(
        socket.as_raw_fd(),
        &batch.bytes,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .map_err(|errno| match errno {
        Errno::EPERM => Error::NotPermitted(errno.into()),
        _ => Error::Netlink {
            doing: "send a batch of rules",
            error: errno.into(),
        },
    })?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => answers(&buffer[..length], batch)?,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::Netlink {
                    doing: "read the kernel's answer",
                    error: errno.into(),
                });
            }
        }
    }
}

fn open() -> Result<OwnedFd, Error> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(|errno| match errno {
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => Error::NoNfTables(errno.into()),
        Errno::EPERM | Errno::EACCES => Error::NotPermitted(errno.into()),
        _ => Error::Netlink {
            doing: "open a netlink socket",
            error: errno.into(),
        },
    })
}

/// Reads the answers of one datagram; the first refusal is the cause of all that follow.
fn answers(mut datagram: &[u8], batch: &Batch) -> Result<(), Error> {
    while let Some(header) = datagram.get(..HEADER) {
        let length = u32_at(header, 0) as usize;
        if length < HEADER || length > datagram.len() {
            break;
        }
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NLMSG_ERROR && length >= HEADER + 4 {
            let code = u32_at(datagram, HEADER).cast_signed();
            if code != 0 {
                return Err(refusal(-code, u32_at(header, 8), batch));
            }
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(())
}

fn refusal(code: i32, sequence: u32, batch: &Batch) -> Error {
    let error = io::Error::from_raw_os_error(code);
    let what = batch
        .notes
        .get(sequence as usize)
        .map_or("the batch", String::as_str);
    match Errno::from_raw(code) {
        Errno::EPERM | Errno::EACCES => Error::NotPermitted(error),
        Errno::EOPNOTSUPP if what.starts_with("the batch") || what.starts_with("table") => {
            Error::NoNfTables(error)
        }
        errno => Error::Refused {
            what: what.to_owned(),
            error,
            remedy: match errno {
                Errno::ENOENT | Errno::EOPNOTSUPP => {
                    "; the kernel lacks a part that it needs: load nft_nat, nft_redir, nft_masq and nft_numgen"
                }
                Errno::EBUSY => "; something else changed the rules at the same time: try again",
                _ => "",
            },
        },
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_ne_bytes(four)
}
