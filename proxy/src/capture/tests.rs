//! The rules as text, and what they do to real connections in a network namespace of their own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const TEXT: &str = "\
table inet tulle_capture {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		meta l4proto tcp jump inbound
	}

	chain output {
		type nat hook output priority -100; policy accept;
		meta l4proto tcp jump outbound
	}

	chain inbound {
		tcp dport 15020 return
		tcp dport 15021 return
		meta l4proto tcp counter redirect to :15006
	}

	chain outbound {
		oifname \"lo\" ip saddr 127.0.0.6 return
		oifname \"lo\" ip6 saddr ::6 return
		tcp dport 5432 return
		meta l4proto tcp oifname \"lo\" ip daddr != 127.0.0.0/8 meta skuid 1337 jump inbound
		meta l4proto tcp oifname \"lo\" ip6 daddr != ::1 meta skuid 1337 jump inbound
		meta l4proto tcp oifname \"lo\" ip daddr != 127.0.0.0/8 meta skgid 1337 jump inbound
		meta l4proto tcp oifname \"lo\" ip6 daddr != ::1 meta skgid 1337 jump inbound
		oifname \"lo\" return
		meta skuid 1337 return
		meta skgid 1337 return
		ip daddr 192.168.0.0/16 return
		ip6 daddr fd00::/8 return
		meta l4proto tcp counter redirect to :15001
	}
}
";

fn example() -> Capture {
    Capture {
        owner: Owner::User,
        exclude_inbound_ports: vec![15020, 15021],
        exclude_outbound_ports: vec![5432],
        exclude_outbound_cidrs: vec![
            "192.168.0.0/16".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ],
    }
}

#[test]
fn rules_are_printed_as_nft_text() {
    assert_eq!(example().ruleset().to_string(), TEXT);
}

#[test]
fn where_the_proxy_has_no_user_its_mark_is_exempt() {
    let text = Capture {
        owner: Owner::Mark,
        ..Capture::default()
    }
    .ruleset()
    .to_string();
    assert!(
        text.contains("ip daddr != 127.0.0.0/8 meta mark 0x0054554c jump inbound"),
        "{text}"
    );
    assert!(text.contains("\t\tmeta mark 0x0054554c return"), "{text}");
    assert!(!text.contains("1337"), "{text}");
}

/// Runs `act` on a thread in a network namespace of its own, with `lo` up and one address of each family beside it.
fn in_namespace(act: impl FnOnce() + Send + 'static) {
    let entered = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        prepare()?;
        act();
        io::Result::Ok(())
    })
    .join()
    .expect("the test holds inside its namespace");
    if let Err(error) = entered {
        let required = std::env::var_os("TULLE_TEST_REQUIRE").is_some_and(|list| {
            let list = list.to_string_lossy();
            list.split(',').any(|one| matches!(one, "all" | "netns"))
        });
        assert!(!required, "TULLE_TEST_REQUIRE wants netns, but: {error}");
        eprintln!(
            "SKIP: no network namespace to test in: {error}; run as root, with the package iproute2"
        );
    }
}

const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));

/// Brings `lo` up with the pod's addresses, and a link to nobody with a route to everywhere. Fails without
/// the program `ip`.
fn prepare() -> io::Result<()> {
    let commands = [
        "ip link set lo up",
        "ip address add 10.1.2.3/32 dev lo",
        "ip address add fd00::3/128 dev lo",
        "ip link add out type veth peer name far",
        "ip link set far up",
        "ip link set out up",
        "ip address add 10.1.2.4/32 dev out",
        "ip route add default dev out",
    ];
    for command in commands {
        let mut words = command.split(' ');
        let status = std::process::Command::new(words.next().unwrap())
            .args(words)
            .status()
            .map_err(|error| io::Error::new(error.kind(), format!("the program ip: {error}")))?;
        assert!(status.success(), "{command}");
    }
    for _ in 0..2 {
        example_with_mark().apply(POD).unwrap();
    }
    Ok(())
}

/// With the mark, so that the test can be app and proxy at once.
fn example_with_mark() -> Capture {
    Capture {
        owner: Owner::Mark,
        ..example()
    }
}

fn listener(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

/// Connects, and returns what the listener that got the connection answers: its port and the original destination.
fn connect(to: SocketAddr, from: Option<IpAddr>, mark: bool) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    if mark {
        socket.set_mark(PROXY_MARK)?;
    }
    socket.connect_timeout(&to.into(), std::time::Duration::from_millis(500))?;
    let mut answer = String::new();
    TcpStream::from(socket).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Answers connections with the port that got them and where they meant to go.
fn answer(port: u16) {
    let listener = listener(port);
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tcp = tcp.unwrap();
            let socket = SockRef::from(&tcp);
            let v4 = tcp
                .peer_addr()
                .is_ok_and(|peer| peer.ip().to_canonical().is_ipv4());
            let original = if v4 {
                socket.original_dst_v4()
            } else {
                socket.original_dst_v6()
            };
            let original = original.ok().and_then(|address| address.as_socket());
            let meant = original.map_or_else(|| "?".to_owned(), |address| address.to_string());
            tcp.write_all(format!("{port} {meant}").as_bytes()).unwrap();
        }
    });
}

#[test]
fn connections_go_where_the_rules_say() {
    in_namespace(|| {
        for port in [ports::OUTBOUND, ports::INBOUND, 8080, 15020] {
            answer(port);
        }
        let v6: IpAddr = "fd00::3".parse().unwrap();
        let source_v4 = Some(IpAddr::V4(INBOUND_SOURCE_V4));
        let source_v6 = Some(IpAddr::V6(INBOUND_SOURCE_V6));
        let table = [
            (
                "the app calls out",
                OUTSIDE,
                80,
                None,
                false,
                "15001 10.9.9.9:80",
            ),
            (
                "the app calls itself by its pod IP",
                POD,
                8080,
                None,
                false,
                "8080 10.1.2.3:8080",
            ),
            (
                "the app calls itself by localhost",
                Ipv4Addr::LOCALHOST.into(),
                8080,
                None,
                false,
                "8080 127.0.0.1:8080",
            ),
            (
                "the proxy calls its app",
                POD,
                8080,
                source_v4,
                true,
                "8080 10.1.2.3:8080",
            ),
            (
                "the proxy calls its app over IPv6",
                v6,
                8080,
                source_v6,
                true,
                "8080 [fd00::3]:8080",
            ),
            (
                "the proxy calls its own pod as a peer",
                POD,
                8080,
                None,
                true,
                "15006 10.1.2.3:8080",
            ),
            (
                "the same over IPv6",
                v6,
                8080,
                None,
                true,
                "15006 [fd00::3]:8080",
            ),
            (
                "the same at a port that stays out",
                POD,
                15020,
                None,
                true,
                "15020 10.1.2.3:15020",
            ),
            (
                "the proxy calls localhost",
                Ipv4Addr::LOCALHOST.into(),
                8080,
                None,
                true,
                "8080 127.0.0.1:8080",
            ),
        ];
        for (name, to, port, from, mark, expected) in table {
            let answer = connect(SocketAddr::new(to, port), from, mark);
            assert_eq!(answer.expect(name), expected, "{name}");
        }
        for (name, to, port, mark) in [
            ("the proxy calls out", OUTSIDE, 80, true),
            ("an excluded port", OUTSIDE, 5432, false),
            (
                "an excluded network",
                "192.168.7.7".parse().unwrap(),
                80,
                false,
            ),
        ] {
            assert!(
                connect(SocketAddr::new(to, port), None, mark).is_err(),
                "{name} must leave the pod"
            );
        }
    });
}

/// What `nft` and `ip` would show.
fn is_captured() -> (bool, bool) {
    let redirected = connect(SocketAddr::new(OUTSIDE, 80), None, false).is_ok();
    let source = address::exists(INBOUND_SOURCE_V6.into());
    (redirected, source.unwrap())
}

#[test]
fn what_was_captured_is_given_back_and_can_be_given_back_twice() {
    in_namespace(|| {
        answer(ports::OUTBOUND);
        assert_eq!(is_captured(), (true, true));
        for _ in 0..2 {
            Capture::default().remove().unwrap();
            assert_eq!(is_captured(), (false, false));
        }
    });
}

#[test]
fn a_namespace_without_the_pods_address_is_left_alone() {
    in_namespace(|| {
        answer(ports::OUTBOUND);
        Capture::default().remove().unwrap();
        for other in ["10.7.7.7", "127.0.0.1", "::1", "fd00::7", "0.0.0.0"] {
            let other: IpAddr = other.parse().unwrap();
            let error = example_with_mark().apply(other).unwrap_err();
            assert!(matches!(error, CaptureError::OtherNamespace(_)), "{error}");
            assert_eq!(is_captured(), (false, false), "{other}");
        }
        example_with_mark()
            .apply("fd00::3".parse().unwrap())
            .unwrap();
        assert_eq!(is_captured(), (true, true));
    });
}
