//! `Cluster`: what is taken, which policy counts, and the Service in a name.

use tulle_xds_proto::envoy::config::cluster::v3 as cds;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use tulle_xds_proto::envoy::config::cluster::v3::load_balancing_policy::Policy;
use tulle_xds_proto::envoy::config::core::v3::{TransportSocket, TypedExtensionConfig};
use tulle_xds_proto::envoy::extensions::load_balancing_policies::common::v3::ConsistentHashingLbConfig;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::random::v3::Random;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use tulle_xds_proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config,
};
use tulle_xds_proto::google::protobuf::{Any, UInt32Value, UInt64Value};
use tulle_xds_proto::pack;

use super::{Expected, check};
use crate::config::cluster::{LbPolicy, UpstreamHttp};
use crate::xds::decode::{DecodeError, EndpointSource, cluster};
use crate::xds::tests::resources::{
    SERVICE, cluster as a_cluster, endpoint, garbage, load_assignment,
};

fn kind(kind: DiscoveryType) -> ClusterDiscoveryType {
    ClusterDiscoveryType::Type(kind.into())
}

/// Gives a cluster one endpoint of its own.
fn inside(cluster: &mut cds::Cluster, discovery: DiscoveryType, address: &str) {
    cluster.cluster_discovery_type = Some(kind(discovery));
    // The name in it says nothing: it is this cluster's.
    cluster.load_assignment = Some(load_assignment("", vec![endpoint(address)]));
}

#[test]
fn clusters() {
    type Change = fn(&mut cds::Cluster);
    let table: [(&str, Change, Expected); 13] = [
        ("EDS", |_| {}, Ok(())),
        ("another name", |c| c.name.push('x'), Err("name")),
        (
            "static, without endpoints",
            |c| c.cluster_discovery_type = Some(kind(DiscoveryType::Static)),
            Err("load_assignment"),
        ),
        (
            "static, with endpoints",
            |c| inside(c, DiscoveryType::Static, "10.1.0.2"),
            Ok(()),
        ),
        (
            "by DNS, with an address",
            |c| inside(c, DiscoveryType::StrictDns, "10.1.0.2"),
            Ok(()),
        ),
        (
            "by DNS, with a name",
            |c| inside(c, DiscoveryType::LogicalDns, "www.example.com"),
            Err("load_assignment.endpoints[0].lb_endpoints[0].endpoint.address"),
        ),
        (
            "of a type of its own",
            |c| {
                let own = cds::cluster::CustomClusterType::default();
                c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(own));
            },
            Err("type"),
        ),
        (
            "original destination",
            |c| c.cluster_discovery_type = Some(kind(DiscoveryType::OriginalDst)),
            Ok(()),
        ),
        ("a legacy policy", |c| c.lb_policy = 3, Ok(())),
        (
            "a policy that is not known",
            |c| c.lb_policy = 7,
            Err("lb_policy"),
        ),
        (
            "only policies that are not known",
            |c| c.load_balancing_policy = Some(cds::LoadBalancingPolicy::default()),
            Err("load_balancing_policy"),
        ),
        (
            "TLS for all",
            |c| c.transport_socket = Some(TransportSocket::default()),
            Err("transport_socket"),
        ),
        (
            "too many ejections",
            |c| {
                c.outlier_detection = Some(cds::OutlierDetection {
                    max_ejection_percent: Some(UInt32Value { value: 101 }),
                    ..Default::default()
                });
            },
            Err("outlier_detection.max_ejection_percent"),
        ),
    ];
    for (name, change, expected) in table {
        let mut message = a_cluster(SERVICE, 7);
        change(&mut message);
        check(name, cluster(SERVICE, &pack(&message)), expected);
    }
}

#[test]
fn the_first_known_policy_of_the_list_counts() {
    let policy = |any| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: String::new(),
            typed_config: Some(any),
        }),
    };
    let mut message = a_cluster(SERVICE, 7);
    message.load_balancing_policy = Some(cds::LoadBalancingPolicy {
        policies: vec![
            policy(garbage("x/future")),
            policy(pack(&Random::default())),
        ],
    });
    let spec = cluster(SERVICE, &pack(&message)).expect("valid");
    assert_eq!(spec.lb_policy, LbPolicy::Random);
    assert_eq!(spec.limits.max_requests, 7);
    assert_eq!(spec.source, EndpointSource::Eds(SERVICE.into()));
    assert_eq!(spec.connect_timeout, std::time::Duration::from_secs(1));
}

/// A cluster whose policies are these, first one first.
fn balanced(configs: Vec<Any>) -> Result<LbPolicy, DecodeError> {
    let policy = |any| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: String::new(),
            typed_config: Some(any),
        }),
    };
    let mut message = a_cluster(SERVICE, 7);
    message.load_balancing_policy = Some(cds::LoadBalancingPolicy {
        policies: configs.into_iter().map(policy).collect(),
    });
    cluster(SERVICE, &pack(&message)).map(|spec| spec.lb_policy)
}

#[test]
fn hashing_policies_are_taken_unless_they_bound_shares_or_hash_otherwise() {
    let config = |change: fn(&mut ConsistentHashingLbConfig)| {
        let mut config = ConsistentHashingLbConfig::default();
        change(&mut config);
        Some(config)
    };
    let maglev = |change| {
        pack(&Maglev {
            table_size: Some(UInt64Value { value: 65_537 }),
            consistent_hashing_lb_config: config(change),
            ..Default::default()
        })
    };
    let ring = |change| {
        pack(&RingHash {
            consistent_hashing_lb_config: config(change),
            ..Default::default()
        })
    };
    let random = || pack(&Random::default());
    for known in [maglev(|_| {}), ring(|_| {})] {
        let found = balanced(vec![known, random()]).expect("valid");
        assert_eq!(found, LbPolicy::ConsistentHash);
    }
    type Change = fn(&mut ConsistentHashingLbConfig);
    let table: [(&str, Change); 3] = [
        ("use_hostname_for_hashing", |c| {
            c.use_hostname_for_hashing = true
        }),
        ("hash_balance_factor", |c| {
            c.hash_balance_factor = Some(UInt32Value { value: 150 });
        }),
        ("hash_policy", |c| c.hash_policy.push(Default::default())),
    ];
    for (field, change) in table {
        for bad in [maglev(change), ring(change)] {
            let error = balanced(vec![bad, random()]).expect_err(field);
            let expected = format!(
                "load_balancing_policy.policies[0].typed_extension_config.typed_config.\
                 consistent_hashing_lb_config.{field}"
            );
            assert_eq!(error.field(), expected);
        }
    }
    let broken = balanced(vec![garbage(&maglev(|_| {}).type_url), random()]);
    let field = "load_balancing_policy.policies[0].typed_extension_config.typed_config";
    check("no message", broken, Err(field));
}

#[test]
fn hashing_by_the_legacy_field_is_taken_unless_it_bounds_shares() {
    for policy in [2, 5] {
        let mut message = a_cluster(SERVICE, 7);
        message.lb_policy = policy;
        let spec = cluster(SERVICE, &pack(&message)).expect("valid");
        assert_eq!(spec.lb_policy, LbPolicy::ConsistentHash);
        let bounded = cds::cluster::common_lb_config::ConsistentHashingLbConfig {
            hash_balance_factor: Some(UInt32Value { value: 150 }),
            ..Default::default()
        };
        message.common_lb_config = Some(cds::cluster::CommonLbConfig {
            consistent_hashing_lb_config: Some(bounded),
            ..Default::default()
        });
        check(
            "bounded",
            cluster(SERVICE, &pack(&message)),
            Err("common_lb_config.consistent_hashing_lb_config.hash_balance_factor"),
        );
    }
}

#[test]
fn protocol_options_say_which_version_is_spoken() {
    use explicit_http_config::ProtocolConfig;
    let with = |options: Option<UpstreamProtocolOptions>| {
        let mut message = a_cluster(SERVICE, 7);
        let options = HttpProtocolOptions {
            upstream_protocol_options: options,
            ..Default::default()
        };
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let typed = [(name.to_owned(), pack(&options))];
        message.typed_extension_protocol_options = typed.into();
        cluster(SERVICE, &pack(&message)).map(|spec| spec.http)
    };
    let explicit = |protocol_config| {
        let config = ExplicitHttpConfig {
            protocol_config: Some(protocol_config),
        };
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config))
    };
    let http1 = ProtocolConfig::HttpProtocolOptions(Default::default());
    let http2 = ProtocolConfig::Http2ProtocolOptions(Default::default());
    let http3 = ProtocolConfig::Http3ProtocolOptions(Default::default());
    let downstream = UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default());
    let taken = [
        (explicit(http1), UpstreamHttp::Http1),
        (explicit(http2), UpstreamHttp::Http2),
        (Some(downstream), UpstreamHttp::Downstream),
    ];
    for (options, expected) in taken {
        assert_eq!(with(options).expect("valid"), expected);
    }
    let auto = UpstreamProtocolOptions::AutoConfig(Default::default());
    let refused = [
        (explicit(http3), "http3_protocol_options"),
        (Some(auto), "auto_config"),
        (None, "missing"),
    ];
    for (options, value) in refused {
        let error = with(options).expect_err(value);
        let place = "HttpProtocolOptions\"].upstream_protocol_options";
        assert!(error.field().ends_with(place), "{error}");
        assert!(error.to_string().contains(value), "{error}");
    }
    let plain = cluster(SERVICE, &pack(&a_cluster(SERVICE, 7))).expect("valid");
    assert_eq!(plain.http, UpstreamHttp::Downstream);
}

#[test]
fn services_are_told_from_names_of_clusters() {
    let table = [
        (SERVICE, Some("echo")),
        ("inbound|80||echo.demo.svc.cluster.local", Some("echo")),
        ("outbound|80|v1|echo.demo.svc", Some("echo")),
        ("inbound|80||", None),
        ("pod|80||echo-0.demo", None),
        ("outbound|80||echo.example.com", None),
        ("nonsense", None),
    ];
    for (name, expected) in table {
        let found = cluster::service_of(name);
        assert_eq!(
            found.as_ref().map(|service| &*service.name),
            expected,
            "{name:?}"
        );
    }
}
