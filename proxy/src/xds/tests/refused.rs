//! What a control plane sends that is bad, type by type: it hears why, what was good stays in use, what is good beside it
//! counts, and what is good later is taken. And what it is not asked about, because that is too much.

use tulle_xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tulle_xds_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tulle_xds_proto::envoy::config::route::v3::RouteConfiguration;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatcher;
use tulle_xds_proto::google::protobuf::Any;

use super::patience::{serves, taught};
use super::resources::{garbage, socket_address};
use super::*;

const OTHER: &str = "outbound|80|v2|echo.demo.svc.cluster.local";

/// Endpoints of the service, changed.
fn endpoints(change: impl FnOnce(&mut ClusterLoadAssignment)) -> Any {
    let mut message = load_assignment(SERVICE, vec![endpoint("10.1.0.2"), endpoint("10.1.0.3")]);
    change(&mut message);
    pack(&message)
}

/// The second of them at another address.
fn at(ip: &str, port: u32) -> Any {
    endpoints(|message| {
        let second = &mut message.endpoints[0].lb_endpoints[1];
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut second.host_identifier {
            endpoint.address = Some(socket_address(ip, port));
        }
    })
}

/// Its route table, changed.
fn table(change: impl FnOnce(&mut RouteConfiguration)) -> Any {
    let mut message = routes(SERVICE, &[SERVICE]);
    change(&mut message);
    pack(&message)
}

fn regex(regex: &str) -> Any {
    table(|message| {
        let route = &mut message.virtual_hosts[0].routes[0];
        if let Some(found) = &mut route.r#match {
            found.path_specifier = Some(PathSpecifier::SafeRegex(RegexMatcher {
                regex: regex.to_owned(),
                ..RegexMatcher::default()
            }));
        }
    })
}

/// What is bad, and a word of the reason beside the name.
fn bad() -> Vec<(ResourceType, Any, &'static str)> {
    let (eds, rds) = (ResourceType::Endpoints, ResourceType::Route);
    vec![
        (eds, garbage(eds.type_url()), "malformed"),
        (eds, table(|_| {}), "type"),
        (eds, at("web.example", 80), "address"),
        (eds, at("10.1.0.3", 70_000), "a port is at most 65535"),
        (
            eds,
            endpoints(|message| message.endpoints[0].lb_endpoints[1].host_identifier = None),
            "endpoint",
        ),
        (rds, garbage(rds.type_url()), "malformed"),
        (rds, endpoints(|_| {}), "type"),
        (
            rds,
            table(|message| message.virtual_hosts[0].domains.clear()),
            "domains",
        ),
        (
            rds,
            table(|message| message.virtual_hosts.push(message.virtual_hosts[0].clone())),
            "domains",
        ),
        (rds, regex("("), "regex"),
        (rds, regex("(a{1000}){1000}"), "regex"),
        (
            rds,
            table(|message| message.virtual_hosts[0].routes[0].action = None),
            "action",
        ),
        (
            rds,
            table(|message| {
                let route = &mut message.virtual_hosts[0].routes[0];
                if let Some(Action::Route(action)) = &mut route.action {
                    action.cluster_specifier = None;
                }
            }),
            "cluster",
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn row_39_bad_endpoints_and_route_tables_are_refused_with_a_reason_and_the_last_good_stay() {
    for (kind, any, reason) in bad() {
        let tasks = Tasks::new();
        let (_server, mut session, config, status) = taught(&tasks).await;
        let _in_use = config.hold(destination());
        let before = config.load().routes[SERVICE].clone();
        session.send_any(kind, vec![(SERVICE, any)], &[]).await;
        let said = session.acknowledged().await.expect(reason);
        assert!(said.starts_with(SERVICE), "{said}");
        assert!(said.to_lowercase().contains(reason), "{reason}: {said}");
        assert!(serves(&config), "{said}");
        assert!(Arc::ptr_eq(&before, &config.load().routes[SERVICE]));
        let report = status.report();
        let rejects: u64 = report.types.values().map(|it| it.rejects).sum();
        assert_eq!(rejects, 1, "{said}");

        // What is good then is taken: two endpoints, and another table.
        let good = [
            (ResourceType::Endpoints, endpoints(|_| {})),
            (
                ResourceType::Route,
                table(|message| message.virtual_hosts[0].domains = vec!["echo".to_owned()]),
            ),
        ];
        for (kind, any) in good {
            session.send_any(kind, vec![(SERVICE, any)], &[]).await;
            assert_eq!(session.acknowledged().await, None);
        }
        let now = config.load();
        assert_eq!(now.cluster(SERVICE).expect("there").endpoints.len(), 2);
        assert!(!Arc::ptr_eq(&before, &now.routes[SERVICE]));
    }
}

#[tokio::test(start_paused = true)]
async fn row_39_good_endpoints_beside_bad_ones_count() {
    let tasks = Tasks::new();
    let (_server, mut session, config, _) = taught(&tasks).await;
    let _in_use = config.hold(destination());
    let two = routes(SERVICE, &[SERVICE, OTHER]);
    session.send(ResourceType::Route, &[(SERVICE, &two)]).await;
    session.subscribed(ResourceType::Cluster, &[OTHER]).await;
    let other = cluster(OTHER, 1);
    session
        .send(ResourceType::Cluster, &[(OTHER, &other)])
        .await;
    session.subscribed(ResourceType::Endpoints, &[OTHER]).await;
    let good = load_assignment(OTHER, vec![endpoint("10.1.0.9")]);
    let sent = vec![(SERVICE, at("10.1.0.3", 70_000)), (OTHER, pack(&good))];
    session.send_any(ResourceType::Endpoints, sent, &[]).await;
    let reason = session.acknowledged().await.expect("a NACK");
    assert!(
        reason.starts_with(SERVICE) && !reason.contains(OTHER),
        "{reason}"
    );
    assert!(serves(&config), "as before");
    let now = config.load();
    assert_eq!(now.cluster(OTHER).expect("good").endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn more_than_may_be_asked_about_is_refused_and_counted_until_something_is_idle() {
    let tasks = Tasks::new();
    let mut server = ScriptedServer::in_memory(&tasks);
    let (config, writer) = Config::new(Snapshot::default());
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = XdsMetrics::register(&mut registry);
    let node = XdsConfig {
        max_subscriptions: 1,
        ..node(None)
    };
    let client = XdsClient::new(node, server.channel.clone(), writer, metrics);
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let mut session = server.session().await;
    session
        .subscribed(ResourceType::Listener, &["inbound"])
        .await;
    let (resolution, ()) = tokio::join!(config.resolve(destination()), teach(&mut session));
    assert!(matches!(resolution, Resolution::Known(_)));
    let series = |name: &str| {
        let text = tulle_runtime::metrics::encode(&registry);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned()).expect(name)
    };
    let asked = "xds_asked{about=\"destinations\"}";
    assert_eq!(
        [series(asked), series("xds_refused_asks_total")],
        ["1", "0"]
    );

    let in_use = config.hold(destination());
    let other = "10.0.0.2:80".parse().expect("an address");
    let refused = config.resolve(other).await;
    assert!(matches!(refused, Resolution::Unanswered), "{refused:?}");
    assert_ne!(series("xds_refused_asks_total"), "0");
    assert_eq!(series(asked), "1");

    // A few minutes without use, and it makes room.
    drop(in_use);
    tokio::time::sleep(10 * PATIENCE).await;
    let teach = async {
        let name = LISTENER.replace("10.0.0.1", "10.0.0.2");
        loop {
            let subscribed = session.subscription().await.resource_names_subscribe;
            if subscribed.contains(&name) {
                break;
            }
        }
        session.remove(ResourceType::Listener, &[&name]).await;
    };
    let (resolution, ()) = tokio::join!(config.resolve(other), teach);
    assert!(matches!(resolution, Resolution::Unknown), "{resolution:?}");
    assert_eq!(series(asked), "1");
}
