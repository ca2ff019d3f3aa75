//! A hand-scripted control plane that is out of its mind, and a real sidecar that must take it: it serves by the last good
//! config, says what it refuses, stays small and calm, and takes what is good again, on the same stream and on the next.

pub(crate) mod hosts;
mod messages;
mod server;
pub(crate) mod tables;
mod victim;

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::Mesh;
use tulle_xds_proto::ResourceType::{Address, Cluster, Endpoints, Listener, Route, Secret};
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatcher;
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::prost::Message as _;
use tulle_xds_proto::{ResourceType, pack};

use messages::{
    assignment, cluster, garbage, listener, nested, one, rds_listener, removal, resource, response,
    routes, truncated,
};
use server::{Hostile, Manners, Stream};
use victim::Victim;

tulle_tests::cases! {
    row_39_hand_scripted_bad_resources_are_refused_by_name_and_again_after_a_reconnect;
    hand_scripted_answers_in_any_order_end_in_the_config_that_was_meant;
    hand_scripted_floods_are_bounded_in_memory_and_cpu;
    hand_scripted_servers_that_break_off_are_tried_again_without_haste;
}

/// A resource that must be refused, and words of the reason beside its name.
type Bad = (ResourceType, Resource, &'static str);

fn bad_resources() -> Vec<Bad> {
    let evil = Any {
        type_url: "type.googleapis.com/evil.v1.Thing".to_owned(),
        value: vec![1, 2, 3],
    };
    let mut astray = listener("astray", "10.98.2.1", "web");
    astray.address = None;
    let mut deep = listener("deep", "10.98.2.2", "web");
    deep.filter_chains[0].filters[0].config_type = Some(
        tulle_xds_proto::envoy::config::listener::v3::filter::ConfigType::TypedConfig(nested(
            10_000,
        )),
    );
    let whole = listener("half", "10.98.2.3", "web");
    let mislabelled = listener("inner", "10.98.2.4", "web");
    vec![
        (Listener, resource("unknown-type", evil), "evil.v1.Thing"),
        (
            Listener,
            resource("garbage", garbage(Listener)),
            "malformed",
        ),
        (Listener, resource("half", truncated(&whole)), "malformed"),
        (
            Listener,
            resource("outer", pack(&mislabelled)),
            "\"inner\" is not valid; it was sent as resource \"outer\"",
        ),
        (Listener, resource("", pack(&whole)), "(unnamed): name"),
        (
            Listener,
            resource(
                "pattern",
                pack(&by_pattern("pattern", "(a{1000}){1000}", 1)),
            ),
            "make it simpler",
        ),
        (
            Listener,
            resource("deep", pack(&deep)),
            "filter_chains[0].filters[0].typed_config",
        ),
        (Listener, resource("astray", pack(&astray)), "address"),
        (
            Listener,
            resource("cluster-inside", pack(&cluster("cluster-inside"))),
            "Cluster",
        ),
        (
            Cluster,
            resource("bad-cluster", garbage(Cluster)),
            "malformed",
        ),
    ]
}

/// A listener with this many routes that match by a pattern.
fn by_pattern(
    name: &str,
    pattern: &str,
    count: usize,
) -> tulle_xds_proto::envoy::config::listener::v3::Listener {
    messages::inline_listener(name, "10.98.2.9", {
        let mut table = routes(name, "web");
        let host = &mut table.virtual_hosts[0];
        let matcher = RegexMatcher {
            regex: pattern.to_owned(),
            ..RegexMatcher::default()
        };
        if let Some(rule) = &mut host.routes[0].r#match {
            rule.path_specifier = Some(PathSpecifier::SafeRegex(matcher));
        }
        host.routes = vec![host.routes[0].clone(); count];
        table
    })
}

async fn row_39_hand_scripted_bad_resources_are_refused_by_name_and_again_after_a_reconnect(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-bad", &mut server).await?;
    for (kind, resource, words) in bad_resources() {
        let name = if resource.name.is_empty() {
            "(unnamed)".to_owned()
        } else {
            resource.name.clone()
        };
        let reason = stream.refused(response(kind, vec![resource])).await?;
        ensure!(
            reason.starts_with(&name) && reason.contains(words),
            "{name}: {reason}"
        );
        victim.is_well(&mut stream).await?;
    }
    // Twice under one name, differently: the first counts.
    let twice =
        ["10.98.3.1", "10.98.3.2"].map(|ip| resource("twice", pack(&listener("twice", ip, "web"))));
    let reason = stream.refused(response(Listener, twice.into())).await?;
    ensure!(reason.starts_with("twice: name"), "{reason}");
    // A bad version of what is in use.
    let reason = stream
        .refused(response(Listener, vec![resource("web", garbage(Listener))]))
        .await?;
    ensure!(reason.starts_with("web: "), "{reason}");
    victim.is_well(&mut stream).await?;

    // All of it at once to a client that has come back, with a good one among them.
    stream.end()?;
    let mut stream = victim.reconnected(&mut server).await?;
    let bad = bad_resources()
        .into_iter()
        .filter(|(kind, ..)| *kind == Listener);
    let mut all: Vec<_> = bad.map(|(_, resource, _)| resource).collect();
    let names: Vec<_> = all.iter().map(|bad| bad.name.clone()).collect();
    all.push(resource(
        "good",
        pack(&listener("good", "10.98.3.3", "web")),
    ));
    let reason = stream.refused(response(Listener, all)).await?;
    for name in names {
        ensure!(
            reason.contains(&format!("{name}: ")) || name.is_empty(),
            "{name}: {reason}"
        );
    }
    ensure!(!reason.contains("good: "), "{reason}");
    victim.answers("10.98.3.3").await?;
    // Each of them mended.
    for name in [
        "unknown-type",
        "garbage",
        "half",
        "pattern",
        "deep",
        "astray",
    ] {
        stream
            .accepted(one(Listener, name, &listener(name, "10.98.3.4", "web")))
            .await?;
    }
    victim.answers("10.98.3.4").await?;
    victim.is_well(&mut stream).await
}

async fn hand_scripted_answers_in_any_order_end_in_the_config_that_was_meant(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-order", &mut server).await?;
    a_route_to_a_cluster_that_comes_later(&victim, &mut stream).await?;
    victim.is_well(&mut stream).await?;

    // Routes that come later: nobody is served by half a config, and nobody else notices.
    stream
        .accepted(one(
            Listener,
            "late",
            &rds_listener("late", "10.98.4.2", "late"),
        ))
        .await?;
    let answer = victim.call("10.98.4.2").await?;
    ensure!(answer.is_string(), "{answer}");
    stream.asked(Route).await?;
    stream
        .accepted(one(Route, "late", &routes("late", "web")))
        .await?;
    victim.answers("10.98.4.2").await?;

    // The same again and again, and answers that nobody waits for.
    for _ in 0..100 {
        stream
            .accepted(one(Listener, "web", &listener("web", victim::WEB, "web")))
            .await?;
    }
    for (nonce, type_url) in [
        ("z", Listener.type_url()),
        ("a", Listener.type_url()),
        ("", Cluster.type_url()),
        ("z", Cluster.type_url()),
    ] {
        let empty = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        stream.send_as_is(&empty).await?;
        let refused = stream.answer(nonce).await?;
        ensure!(refused.is_none(), "{refused:?}");
    }
    victim.is_well(&mut stream).await?;

    // Removed and added again, and a version that goes back.
    stream.accepted(removal(Listener, "late")).await?;
    stream
        .accepted(one(Listener, "late", &listener("late", "10.98.4.2", "web")))
        .await?;
    victim.answers("10.98.4.2").await?;
    for (version, ip) in [("9", "10.98.4.3"), ("1", "10.98.4.4")] {
        let mut moved = one(Listener, "moving", &listener("moving", ip, "web"));
        moved.resources[0].version = version.to_owned();
        stream.accepted(moved).await?;
        victim.answers(ip).await?;
    }

    // Types that were never asked for are not even acknowledged.
    for type_url in [
        Secret.type_url(),
        Address.type_url(),
        "type.googleapis.com/evil.v1.Thing",
        "",
    ] {
        let mut unasked = response(Listener, vec![resource("x", garbage(Listener))]);
        unasked.type_url = type_url.to_owned();
        stream.send(unasked).await?;
    }
    victim.is_well(&mut stream).await
}

async fn a_route_to_a_cluster_that_comes_later(
    victim: &Victim<'_>,
    stream: &mut Stream,
) -> anyhow::Result<()> {
    stream
        .accepted(one(
            Listener,
            "ghost",
            &listener("ghost", "10.98.4.1", "ghost"),
        ))
        .await?;
    let answer = victim.call("10.98.4.1").await?;
    ensure!(answer["status"] == 503, "{answer}");
    // Endpoints before their cluster are nobody's, and do no harm.
    let endpoints = one(Endpoints, "ghost", &assignment("ghost", victim.backend()));
    stream.accepted(endpoints.clone()).await?;
    stream
        .send(one(Cluster, "ghost", &cluster("ghost")))
        .await?;
    loop {
        let request = stream.request().await?;
        if request.resource_names_subscribe == ["ghost"] {
            break;
        }
    }
    stream.accepted(endpoints).await?;
    victim.answers("10.98.4.1").await
}

async fn hand_scripted_floods_are_bounded_in_memory_and_cpu(mesh: &Mesh) -> anyhow::Result<()> {
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-flood", &mut server).await?;

    // A hundred thousand listeners in parts: the first fits, the last does not.
    let name = |n: u32| format!("many-{n}");
    for part in [0..5_000, 5_000..35_000, 35_000..68_000, 68_000..100_000] {
        let fits = part.start == 0;
        let many = part.map(name);
        let many = many.map(|name| resource(&name, pack(&listener(&name, "10.98.5.1", "web"))));
        let nonce = stream.send(response(Listener, many.collect())).await?;
        let refused = stream.answer(&nonce).await?.unwrap_or_default();
        ensure!(fits == refused.is_empty(), "{refused}");
        ensure!(
            fits || refused.contains("name: \"many-") && refused.contains("at most"),
            "{refused}"
        );
    }
    victim.suffers_in_silence().await?;
    let mut gone = response(Listener, Vec::new());
    gone.removed_resources = (0..100_000).map(name).collect();
    stream.accepted(gone).await?;
    victim.is_well(&mut stream).await?;

    // Patterns that are small to write and large to have.
    let bomb = by_pattern("bomb", "[a-z]{0,200}[0-9]{0,200}", 10_000);
    let reason = stream.refused(one(Listener, "bomb", &bomb)).await?;
    ensure!(
        reason.starts_with("bomb: ") && reason.contains("patterns together"),
        "{reason}"
    );
    victim.is_well(&mut stream).await?;

    // Little to send and much to have: chains of filters of two bytes each, and as many resources.
    let filters = Any {
        type_url: Listener.type_url().to_owned(),
        value: [0x1a, 0].repeat(1 << 20),
    };
    let many = response(Listener, vec![resource("filters", filters)]);
    let reason = stream.refused(many).await?;
    ensure!(reason.contains("more parts"), "{reason}");
    stream.send_message(&[0x12, 0].repeat(2 << 20)).await?;
    let mut stream = victim.reconnected(&mut server).await?;
    victim.is_well(&mut stream).await?;

    // The same answer as fast as it is taken, and no ear for what the client says.
    let same = one(Endpoints, "web", &assignment("web", victim.backend())).encode_to_vec();
    let flood = async {
        loop {
            stream.send_message(&same).await?;
        }
    };
    let (flooded, load) = tokio::select! {
        ended = flood => (Some::<anyhow::Result<()>>(ended), 0.0),
        load = victim.load_over(Duration::from_secs(8)) => (None, load?),
    };
    ensure!(flooded.is_none(), "{flooded:?}");
    ensure!(load < 0.75, "{load} of a core");
    victim.suffers_in_silence().await?;

    // More in one answer than is read, after a fresh start.
    drop(stream);
    let mut stream = victim.reconnected(&mut server).await?;
    let nonce = stream.send_message(&vec![0x0a; 50 * 1024 * 1024]).await;
    ensure!(nonce.is_err(), "all of it was taken");
    victim.suffers_in_silence().await?;
    let mut stream = victim.reconnected(&mut server).await?;
    victim.is_well(&mut stream).await
}

async fn hand_scripted_servers_that_break_off_are_tried_again_without_haste(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_secs(3);
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-broken", &mut server).await?;

    // A name that is no UTF-8, and bytes that are nothing: neither can be refused by name, so the stream ends.
    for message in [&[0x12, 4, 0x1a, 2, 0xff, 0xfe][..], &[0xff; 64]] {
        stream.send_message(message).await?;
        victim.suffers_in_silence().await?;
        stream = victim.reconnected(&mut server).await?;
        victim.is_well(&mut stream).await?;
    }
    for manners in [
        Manners::Reset,
        Manners::Leave,
        Manners::Nonsense,
        Manners::Mute,
        Manners::Silent,
    ] {
        server.behave(manners);
        let before = server.counts();
        stream.end()?;
        let load = victim.load_over(LOOK).await?;
        let after = server.counts();
        let tries = (after[0] - before[0]).max(after[1] - before[1]);
        // A full second of the shortest waits would be twenty.
        ensure!(tries <= 30, "{manners:?}: {tries} tries");
        ensure!(load < 0.5, "{manners:?}: {load} of a core");
        victim.suffers_in_silence().await?;
        server.behave(Manners::Good);
        if manners == Manners::Silent {
            server.forsake();
        }
        stream = victim.reconnected(&mut server).await?;
        victim.is_well(&mut stream).await?;
    }
    Ok(())
}
