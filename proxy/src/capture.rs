//! The rules that bring the pod's connections to the sidecar without the app knowing.
//!
//! [`Capture`] says what stays out; [`Capture::ruleset`] turns it into rules, a pure function; [`Capture::apply`] puts
//! them, and the IPv6 source address of the leg to the app, into the current network namespace, if that is the pod's.
//! Doing so twice changes nothing; [`Capture::remove`] takes both away. UDP is never captured.

mod address;

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use tulle_nft::{Chain, Family, Hook, Match, Rule, Ruleset, Table, Test, Transport, Verdict};
use tulle_runtime::names::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6, PROXY_MARK, PROXY_UID, ports};

/// Name of the table that holds all rules.
const TABLE: &str = "tulle_capture";

/// Why capture could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The rules could not be applied.
    #[error("could not capture the pod's connections: {0}")]
    Rules(#[from] tulle_nft::Error),
    /// The loopback interface could not be given the address of the leg to the app.
    #[error(
        "could not add {INBOUND_SOURCE_V6}/128 to lo ({0}); run with CAP_NET_ADMIN in the pod's network namespace"
    )]
    Address(io::Error),
    /// The address of the leg to the app could not be taken away.
    #[error(
        "could not remove {INBOUND_SOURCE_V6}/128 from lo ({0}); run with CAP_NET_ADMIN in the pod's network namespace"
    )]
    Removal(io::Error),
    /// Nobody says whose network namespace this is.
    #[error(
        "POD_IP is not set, and without it nothing says that this network namespace is a pod's and not the machine's; \
         set it from the downward API (fieldRef: status.podIP), or use --dry-run to see the rules"
    )]
    NoPod,
    /// This network namespace is another's.
    #[error(
        "POD_IP is {0}, which this network namespace does not have as an address of its own: its connections are not \
         the pod's, and nothing was changed; run in the pod's network namespace (hostNetwork: false)"
    )]
    OtherNamespace(IpAddr),
    /// The addresses of this network namespace could not be listed.
    #[error("could not list the addresses of this network namespace ({0})")]
    Addresses(io::Error),
}

/// How the proxy's own connections are told from the app's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// By its user and group.
    #[default]
    User,
    /// By the mark that it puts on its sockets: where it cannot have a user of its own.
    Mark,
}

/// What is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// How the proxy's own connections are told from the app's.
    pub owner: Owner,
    /// Ports of the pod that are reached directly.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports that the app reaches directly, wherever they are.
    pub exclude_outbound_ports: Vec<u16>,
    /// Networks that the app reaches directly.
    pub exclude_outbound_cidrs: Vec<IpNet>,
}

impl Capture {
    /// Puts the rules in place for the pod with this address.
    ///
    /// # Errors
    ///
    /// Changes nothing and says so where the current network namespace does not have the address: it would be the
    /// machine's, whose every connection would be captured. Else names what the kernel refused and what to do about it.
    pub fn apply(&self, pod: IpAddr) -> Result<(), CaptureError> {
        let owned = address::exists(pod).map_err(CaptureError::Addresses)?;
        // Loopback is in every namespace.
        if !owned || pod.is_loopback() {
            return Err(CaptureError::OtherNamespace(pod));
        }
        add_inbound_source()?;
        self.ruleset().apply()?;
        Ok(())
    }

    /// Takes the rules away, whatever they exclude, if they are there.
    ///
    /// # Errors
    ///
    /// Names what the kernel refused and what to do about it.
    pub fn remove(&self) -> Result<(), CaptureError> {
        self.ruleset().remove()?;
        match address::remove_from_loopback(INBOUND_SOURCE_V6) {
            Err(errno) if !lacks_ipv6(errno) => Err(CaptureError::Removal(errno.into())),
            _ => Ok(()),
        }
    }

    /// The rules.
    #[must_use]
    pub fn ruleset(&self) -> Ruleset {
        let jump = |chain: &str| {
            Rule::new(Verdict::Jump(chain.to_owned())).when(Match::Protocol(Transport::Tcp))
        };
        Table::new(Family::Inet, TABLE)
            .chain(Chain::at(Hook::Prerouting, "prerouting").rule(jump("inbound")))
            .chain(Chain::at(Hook::Output, "output").rule(jump("outbound")))
            .chain(self.inbound())
            .chain(self.outbound())
            .into()
    }

    fn inbound(&self) -> Chain {
        let chain = Chain::named("inbound");
        let chain = exclude_ports(chain, &self.exclude_inbound_ports);
        chain.rule(redirect(ports::INBOUND))
    }

    fn outbound(&self) -> Chain {
        // The leg from the proxy to its app: the one connection that must not come back to the proxy.
        let source = [
            host(INBOUND_SOURCE_V4.into()),
            host(INBOUND_SOURCE_V6.into()),
        ];
        let mut chain = Chain::named("outbound");
        for address in source {
            chain = chain.rule(
                Rule::new(Verdict::Return)
                    .when(on_loopback())
                    .when(Match::Source(Test::Is, address)),
            );
        }
        chain = exclude_ports(chain, &self.exclude_outbound_ports);
        // The app calls its own Service and the proxy picks this very pod: that is inbound, like from any other pod.
        for own in self.own() {
            for loopback in loopback_networks() {
                let rule = Rule::new(Verdict::Jump("inbound".to_owned()))
                    .when(Match::Protocol(Transport::Tcp))
                    .when(on_loopback())
                    .when(Match::Destination(Test::IsNot, loopback))
                    .when(own.clone());
                chain = chain.rule(rule);
            }
        }
        // The app talks to itself.
        chain = chain.rule(Rule::new(Verdict::Return).when(on_loopback()));
        for own in self.own() {
            chain = chain.rule(Rule::new(Verdict::Return).when(own));
        }
        for network in &self.exclude_outbound_cidrs {
            chain = chain.rule(
                Rule::new(Verdict::Return).when(Match::Destination(Test::Is, network.trunc())),
            );
        }
        chain.rule(redirect(ports::OUTBOUND))
    }

    /// What the proxy's own connections have, each by itself.
    fn own(&self) -> Vec<Match> {
        match self.owner {
            Owner::User => {
                vec![
                    Match::SocketUser(Test::Is, PROXY_UID),
                    Match::SocketGroup(Test::Is, PROXY_UID),
                ]
            }
            Owner::Mark => vec![Match::Mark(Test::Is, PROXY_MARK)],
        }
    }
}

fn exclude_ports(chain: Chain, ports: &[u16]) -> Chain {
    ports.iter().fold(chain, |chain, port| {
        let excluded = Match::DestinationPort(Transport::Tcp, Test::Is, *port);
        chain.rule(Rule::new(Verdict::Return).when(excluded))
    })
}

fn redirect(port: u16) -> Rule {
    Rule::new(Verdict::Redirect(port))
        .when(Match::Protocol(Transport::Tcp))
        .counted()
}

fn on_loopback() -> Match {
    Match::OutputInterface(Test::Is, "lo".to_owned())
}

fn host(address: IpAddr) -> IpNet {
    address.into()
}

fn loopback_networks() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).into(),
        Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into(),
    ]
}

/// Gives `lo` the address from which the proxy connects to an app over IPv6. (All of 127.0.0.0/8 is there already.)
fn add_inbound_source() -> Result<(), CaptureError> {
    match address::add_to_loopback(INBOUND_SOURCE_V6) {
        Err(errno) if lacks_ipv6(errno) => {
            tracing::info!(error = %errno, "no IPv6 on lo; capturing IPv4 only");
            Ok(())
        }
        added => added.map_err(|errno| CaptureError::Address(errno.into())),
    }
}

/// What the kernel says of IPv6 addresses where it has, or allows, none.
fn lacks_ipv6(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EACCES | Errno::EADDRNOTAVAIL | Errno::EOPNOTSUPP
    )
}

#[cfg(test)]
mod tests;
