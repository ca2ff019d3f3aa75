//! Bad endpoints and bad route tables: each is refused by name and field, and the last good one stays in use, on the same
//! stream and on the next. Row 39.

use anyhow::ensure;
use tulle_tests::Mesh;
use tulle_xds_proto::ENDPOINT_METADATA;
use tulle_xds_proto::ResourceType::{Endpoints, Listener, Route};
use tulle_xds_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use tulle_xds_proto::envoy::config::core::v3::{Metadata, address};
use tulle_xds_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use tulle_xds_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use tulle_xds_proto::envoy::config::route::v3::RouteConfiguration;
use tulle_xds_proto::envoy::config::route::v3::route::Action;
use tulle_xds_proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use tulle_xds_proto::envoy::config::route::v3::route_match::PathSpecifier;
use tulle_xds_proto::envoy::r#type::matcher::v3::RegexMatcher;
use tulle_xds_proto::google::protobuf::{Any, UInt32Value};
use tulle_xds_proto::{pack, tulle};

use super::messages::{
    assignment, garbage, listener, one, rds_listener, resource, response, routes, truncated,
};
use super::server::{Hostile, Stream};
use super::victim::{self, Victim};

tulle_tests::cases! {
    row_39_hand_scripted_bad_endpoints_and_route_tables_leave_the_last_good_ones;
}

/// Where the table is used.
const TABLED: &str = "10.98.6.1";
const TABLE: &str = "table";

/// What is bad, and words of the reason beside the name.
type Bad = (Any, &'static str);

fn bad_endpoints(backend: &str) -> Vec<Bad> {
    let good = assignment("web", backend);
    let spoilt = |spoil: &dyn Fn(&mut ClusterLoadAssignment)| {
        let mut bad = good.clone();
        spoil(&mut bad);
        pack(&bad)
    };
    let endpoint = |spoil: &dyn Fn(&mut LbEndpoint)| {
        spoilt(&|bad| spoil(&mut bad.endpoints[0].lb_endpoints[0]))
    };
    let address = |host: &str, port: u32| {
        endpoint(&|bad| {
            let Some(HostIdentifier::Endpoint(endpoint)) = &mut bad.host_identifier else {
                return;
            };
            let address = endpoint.address.as_mut().and_then(|it| it.address.as_mut());
            if let Some(address::Address::SocketAddress(socket)) = address {
                host.clone_into(&mut socket.address);
                socket.port_specifier = Some(PortSpecifier::PortValue(port));
            }
        })
    };
    let meshed = tulle::v1::Endpoint {
        mtls: true,
        ..tulle::v1::Endpoint::default()
    };
    let metadata = Metadata {
        typed_filter_metadata: [(ENDPOINT_METADATA.to_owned(), pack(&meshed))].into(),
        ..Metadata::default()
    };
    vec![
        (garbage(Endpoints), "malformed"),
        (truncated(&good), "malformed"),
        (pack(&listener("web", victim::WEB, "web")), "Listener"),
        (pack(&assignment("other", backend)), "cluster_name"),
        (address("web.example", 8080), "endpoint.address"),
        (address(backend, 70_000), "endpoint.address"),
        (endpoint(&|bad| bad.host_identifier = None), "endpoint"),
        (
            endpoint(&|bad| bad.load_balancing_weight = Some(UInt32Value { value: 0 })),
            "load_balancing_weight",
        ),
        (spoilt(&|bad| bad.endpoints[0].priority = 1), "priority"),
        (
            endpoint(&|bad| bad.metadata = Some(metadata.clone())),
            "spiffe_ids",
        ),
    ]
}

fn bad_tables() -> Vec<Bad> {
    let spoilt = |spoil: &dyn Fn(&mut RouteConfiguration)| {
        let mut bad = routes(TABLE, "web");
        spoil(&mut bad);
        pack(&bad)
    };
    let pattern = RegexMatcher {
        regex: "(a{1000}){1000}".to_owned(),
        ..RegexMatcher::default()
    };
    vec![
        (garbage(Route), "malformed"),
        (truncated(&routes(TABLE, "web")), "malformed"),
        (pack(&listener(TABLE, TABLED, "web")), "Listener"),
        (pack(&routes("other", "web")), "name"),
        (
            spoilt(&|bad| {
                let twice = bad.virtual_hosts[0].clone();
                bad.virtual_hosts.push(twice);
            }),
            "virtual_hosts[1].domains[0]",
        ),
        (
            spoilt(&|bad| bad.virtual_hosts[0].domains.clear()),
            "virtual_hosts[0].domains",
        ),
        (
            spoilt(&|bad| bad.virtual_hosts[0].routes[0].r#match = None),
            "virtual_hosts[0].routes[0].match",
        ),
        (
            spoilt(&|bad| {
                if let Some(rule) = &mut bad.virtual_hosts[0].routes[0].r#match {
                    rule.path_specifier = Some(PathSpecifier::SafeRegex(pattern.clone()));
                }
            }),
            "make it simpler",
        ),
        (
            spoilt(&|bad| bad.virtual_hosts[0].routes[0].action = None),
            "virtual_hosts[0].routes[0]",
        ),
        (
            spoilt(&|bad| {
                if let Some(Action::Route(action)) = &mut bad.virtual_hosts[0].routes[0].action {
                    action.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".into()));
                }
            }),
            "cluster_specifier",
        ),
    ]
}

async fn row_39_hand_scripted_bad_endpoints_and_route_tables_leave_the_last_good_ones(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let mut server = Hostile::start().await?;
    let (mut victim, mut stream) = Victim::start(mesh, "hostile-tables", &mut server).await?;
    tabled(&victim, &mut stream).await?;
    refuses_all(&mut victim, &mut stream).await?;
    // A new table in the same answer as a bad one is taken.
    let beside = listener_of("beside", "10.98.6.2");
    stream.send(one(Listener, "beside", &beside)).await?;
    loop {
        let request = stream.request().await?;
        if request.resource_names_subscribe == ["beside"] {
            break;
        }
    }
    let good = resource("beside", pack(&routes("beside", "web")));
    let bad = resource(TABLE, garbage(Route));
    let reason = stream.refused(response(Route, vec![bad, good])).await?;
    ensure!(
        reason.starts_with(TABLE) && !reason.contains("beside"),
        "{reason}"
    );
    victim.answers("10.98.6.2").await?;
    victim.answers(TABLED).await?;

    // The same to a client that has come back: what it has is from before, and what is mended it takes.
    stream.end()?;
    let mut stream = victim.reconnected(&mut server).await?;
    tabled(&victim, &mut stream).await?;
    refuses_all(&mut victim, &mut stream).await?;
    tabled(&victim, &mut stream).await?;
    let mended = assignment("web", victim.backend());
    stream.accepted(one(Endpoints, "web", &mended)).await?;
    victim.is_well(&mut stream).await
}

fn listener_of(name: &str, ip: &str) -> tulle_xds_proto::envoy::config::listener::v3::Listener {
    rds_listener(name, ip, name)
}

/// The table is in use.
async fn tabled(victim: &Victim<'_>, stream: &mut Stream) -> anyhow::Result<()> {
    let listener = listener_of(TABLE, TABLED);
    stream.accepted(one(Listener, TABLE, &listener)).await?;
    stream.asked(Route).await?;
    let table = routes(TABLE, "web");
    stream.accepted(one(Route, TABLE, &table)).await?;
    victim.answers(TABLED).await
}

/// Every bad one is refused, and what was good before is in use.
async fn refuses_all(victim: &mut Victim<'_>, stream: &mut Stream) -> anyhow::Result<()> {
    let endpoints = bad_endpoints(victim.backend()).into_iter();
    let tables = bad_tables().into_iter();
    let all = endpoints.map(|bad| (Endpoints, "web", bad));
    for (kind, name, (bad, words)) in all.chain(tables.map(|bad| (Route, TABLE, bad))) {
        let reason = stream
            .refused(response(kind, vec![resource(name, bad)]))
            .await?;
        ensure!(
            reason.starts_with(name) && reason.contains(words),
            "{words}: {reason}"
        );
        victim.answers(TABLED).await?;
        victim.is_well(stream).await?;
    }
    Ok(())
}
