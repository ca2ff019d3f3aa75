//! The text form as a snapshot, and the netlink form compared with it by the `nft` program.

use std::process::Command;

use ipnet::IpNet;

use super::*;

const TEXT: &str = "\
table inet tulle {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		meta l4proto tcp jump inbound
	}

	chain output {
		type nat hook output priority -100; policy accept;
		oifname \"lo\" ip saddr 127.0.0.6 return
		oifname \"lo\" ip6 saddr ::6 return
		oifname != \"lo\" meta skuid 1337 return
		meta skgid 1337 return
		meta mark 0x0054554c return
		ip daddr != 10.0.0.0/8 return
		ip6 daddr fd00::/64 accept
		meta l4proto udp drop
		meta l4proto tcp counter redirect to :15001
	}

	chain inbound {
		iifname \"eth0\" tcp dport 15020 return
		tcp dport != 15021 redirect to :15006
		goto balance
	}

	chain balance {
		numgen random mod 3 0 dnat ip to 10.1.0.1:8080
		dnat ip6 to [fd00::1]:8080
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"eth1\" masquerade
	}
}
";

fn lo() -> Match {
    Match::OutputInterface(Test::Is, "lo".into())
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn example() -> Table {
    let output = Chain::at(Hook::Output, "output")
        .rule(
            Rule::new(Verdict::Return)
                .when(lo())
                .when(Match::Source(Test::Is, net("127.0.0.6/32"))),
        )
        .rule(
            Rule::new(Verdict::Return)
                .when(lo())
                .when(Match::Source(Test::Is, net("::6/128"))),
        )
        .rule(
            Rule::new(Verdict::Return)
                .when(Match::OutputInterface(Test::IsNot, "lo".into()))
                .when(Match::SocketUser(Test::Is, 1337)),
        )
        .rule(Rule::new(Verdict::Return).when(Match::SocketGroup(Test::Is, 1337)))
        .rule(Rule::new(Verdict::Return).when(Match::Mark(Test::Is, 0x54_55_4c)))
        .rule(Rule::new(Verdict::Return).when(Match::Destination(Test::IsNot, net("10.0.0.0/8"))))
        .rule(Rule::new(Verdict::Accept).when(Match::Destination(Test::Is, net("fd00::/64"))))
        .rule(Rule::new(Verdict::Drop).when(Match::Protocol(Transport::Udp)))
        .rule(
            Rule::new(Verdict::Redirect(15001))
                .when(Match::Protocol(Transport::Tcp))
                .counted(),
        );
    let inbound = Chain::named("inbound")
        .rule(
            Rule::new(Verdict::Return)
                .when(Match::InputInterface(Test::Is, "eth0".into()))
                .when(Match::DestinationPort(Transport::Tcp, Test::Is, 15020)),
        )
        .rule(
            Rule::new(Verdict::Redirect(15006)).when(Match::DestinationPort(
                Transport::Tcp,
                Test::IsNot,
                15021,
            )),
        )
        .rule(Rule::new(Verdict::Goto("balance".into())));
    let balance = Chain::named("balance")
        .rule(Rule::new(Verdict::Dnat("10.1.0.1:8080".parse().unwrap())).when(Match::OneIn(3)))
        .rule(Rule::new(Verdict::Dnat("[fd00::1]:8080".parse().unwrap())));
    Table::new(Family::Inet, "tulle")
        .chain(
            Chain::at(Hook::Prerouting, "prerouting").rule(
                Rule::new(Verdict::Jump("inbound".into())).when(Match::Protocol(Transport::Tcp)),
            ),
        )
        .chain(output)
        .chain(inbound)
        .chain(balance)
        .chain(Chain::at(Hook::Postrouting, "postrouting").rule(
            Rule::new(Verdict::Masquerade).when(Match::OutputInterface(Test::Is, "eth1".into())),
        ))
}

#[test]
fn prints_nft_text() {
    assert_eq!(example().to_string(), TEXT);
}

#[test]
fn refuses_an_address_of_another_family() {
    let v6 = Rule::new(Verdict::Return).when(Match::Source(Test::Is, net("::1/128")));
    let table = Table::new(Family::Ip, "four").chain(Chain::named("chain").rule(v6));
    let Err(error) = encode::replace(&table.into()) else {
        panic!("must be refused")
    };
    assert_eq!(
        error.to_string(),
        "address ::1/128 does not fit table ip four; use a table of its own family or an inet table"
    );
}

/// Runs `act` in a network namespace of its own, which is the calling thread's only.
fn in_namespace(act: impl FnOnce() + Send + 'static) {
    let result = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        act();
        nix::Result::Ok(())
    })
    .join()
    .expect("the test holds inside its namespace");
    if let Err(errno) = result {
        assert!(
            !required("netns"),
            "TULLE_TEST_REQUIRE wants netns, but: {errno}"
        );
        eprintln!("SKIP: no network namespace to test in ({errno}); run as root");
    }
}

/// Whether a test may not be skipped for want of `what`.
fn required(what: &str) -> bool {
    std::env::var_os("TULLE_TEST_REQUIRE").is_some_and(|list| {
        let list = list.to_string_lossy();
        list.split(',').any(|one| one == "all" || one == what)
    })
}

/// What the `nft` program says is in the kernel, or `None` without the program.
fn listed() -> Option<String> {
    let output = Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .ok()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The parts in which `nft` may print a rule that means the same differently.
fn normal(text: &str) -> String {
    text.replace("counter packets 0 bytes 0", "counter")
        .replace("priority filter - 100", "priority -100")
}

#[test]
fn applies_what_it_prints_and_again_without_a_trace() {
    in_namespace(|| {
        let ruleset = Ruleset::from(example());
        for _ in 0..2 {
            ruleset.apply().unwrap();
            match listed() {
                Some(listed) => assert_eq!(normal(&listed), TEXT),
                None => {
                    assert!(!required("nft"), "TULLE_TEST_REQUIRE wants nft");
                    eprintln!("SKIP: no nft program to compare with");
                }
            }
        }
        ruleset.remove().unwrap();
        ruleset.remove().unwrap();
        assert_eq!(listed().unwrap_or_default(), "");
    });
}

#[test]
fn a_refused_rule_is_named_and_leaves_the_old_rules() {
    in_namespace(|| {
        Ruleset::from(example()).apply().unwrap();
        let dangling = Chain::named("a").rule(Rule::new(Verdict::Jump("nowhere".into())));
        let error = Ruleset::from(Table::new(Family::Inet, "tulle").chain(dangling))
            .apply()
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "the kernel refused rule `jump nowhere` in chain a of table inet tulle ("
            ),
            "{text}"
        );
        assert_eq!(normal(&listed().unwrap_or_else(|| TEXT.to_owned())), TEXT);
    });
}
