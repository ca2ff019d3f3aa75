//! Virtual hosts of a server that is out of its mind, and clients that name hosts nobody has.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{Mesh, eventually};
use tulle_xds_proto::ResourceType::Listener;
use tulle_xds_proto::envoy::config::listener::v3 as lds;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::{DirectResponseAction, VirtualHost};

use super::messages::{inline_listener, one, routes};
use super::server::Hostile;
use super::victim::Victim;
use crate::asker::Asker;

tulle_tests::cases! {
    hand_scripted_virtual_hosts_are_refused_by_name_or_found_however_many_they_are;
}

const IP: &str = "10.98.6.1";

/// A listener with virtual hosts: domains, and what they are answered with.
fn hosted(hosts: impl IntoIterator<Item = (Vec<String>, u32)>) -> lds::Listener {
    let mut table = routes("hosts", "web");
    let one = table.virtual_hosts.remove(0);
    let host = |(domains, status): (Vec<String>, u32)| {
        let mut host = VirtualHost {
            name: domains.first().cloned().unwrap_or_default(),
            domains,
            ..one.clone()
        };
        let body = None;
        host.routes[0].action = Some(Action::DirectResponse(DirectResponseAction {
            status,
            body,
            ..Default::default()
        }));
        host
    };
    table.virtual_hosts = hosts.into_iter().map(host).collect();
    inline_listener("hosts", IP, table)
}

fn domains(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

async fn hand_scripted_virtual_hosts_are_refused_by_name_or_found_however_many_they_are(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-hosts", &mut server).await?;
    let bad = [
        (
            hosted([(domains(&["a", "b"]), 201), (domains(&["c", "B"]), 202)]),
            "virtual_hosts[1].domains[1]: \"B\"",
        ),
        (
            hosted([(domains(&["*"]), 201), (domains(&["*"]), 202)]),
            "virtual_hosts[0] (\"*\") has it",
        ),
        (hosted([(domains(&["a", "a"]), 201)]), "has it twice"),
        (
            hosted([(domains(&[]), 201)]),
            "virtual_hosts[0].domains: missing",
        ),
        (hosted([(domains(&[""]), 201)]), "it is empty"),
        (hosted([(domains(&["*.*"]), 201)]), "one star"),
        (hosted([(domains(&["a*b"]), 201)]), "one star"),
        (
            hosted([(vec!["\u{e4}".repeat(130)], 201)]),
            "at most 259 bytes",
        ),
        (
            hosted([((0..32_769).map(|n| n.to_string()).collect(), 201)]),
            "at most 32768 domains",
        ),
        (
            hosted((0..10_001).map(|n| (vec![n.to_string()], 201))),
            "at most 10000 routes",
        ),
    ];
    for (listener, words) in bad {
        let reason = stream.refused(one(Listener, "hosts", &listener)).await?;
        ensure!(
            reason.starts_with("hosts: ") && reason.contains(words),
            "{words}: {reason}"
        );
        ensure!(reason.len() < 4096, "{} bytes", reason.len());
    }
    victim.is_well(&mut stream).await?;

    // As many as may be, each with a suffix and a prefix of its own; wildcards of two hundred lengths among them.
    let many = (0..10_000).map(|n| {
        let dashes = "-".repeat(n % 200);
        (
            vec![
                format!("host-{n}"),
                format!("*{dashes}.of-{n}"),
                format!("{n}-in.*"),
            ],
            201 + n as u32 % 3,
        )
    });
    stream
        .accepted(one(Listener, "hosts", &hosted(many)))
        .await?;
    let address = format!("{IP}:8080");
    let asker = Asker::connect(&victim.arena, "client", &address).await?;
    let found = async |host: &str| asker.ask(host).await;
    eventually(Duration::from_secs(10), async || {
        let found = found("HOST-9999").await?;
        ensure!(found == 201, "{found}");
        Ok(())
    })
    .await?;
    let long = "x".repeat(30_000);
    for (host, status) in [
        ("host-1".to_owned(), 202),
        ("a.of-2".to_owned(), 404),
        ("a--.of-2".to_owned(), 203),
        (format!("{long}--.OF-2"), 203),
        (format!("4-in.{long}"), 202),
        (long.clone(), 404),
        ("elsewhere".to_owned(), 404),
    ] {
        let found = found(&host).await?;
        ensure!(found == status, "{}: {found}", &host[..host.len().min(32)]);
    }
    victim.suffers_in_silence().await?;

    // A domain that goes from one virtual host to another and back is always somebody's.
    let swapped = async {
        for turn in 0..50 {
            let mine = if turn % 2 == 0 {
                ["a", "b"]
            } else {
                ["b", "a"]
            };
            let hosts = [
                (domains(&mine[..1]), 202),
                (domains(&mine[1..]), 203),
                (domains(&["*"]), 201),
            ];
            stream
                .accepted(one(Listener, "hosts", &hosted(hosts)))
                .await?;
        }
        anyhow::Ok(())
    };
    let asked = async {
        loop {
            let status = found("a").await?;
            // Before the first turn nobody has it.
            ensure!([202, 203, 404].contains(&status), "{status}");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        swapped = swapped => swapped?,
        asked = asked => asked?,
    }
    eventually(Duration::from_secs(10), async || {
        let found = found("a").await?;
        ensure!(found == 203, "{found}");
        Ok(())
    })
    .await?;
    victim.is_well(&mut stream).await
}
