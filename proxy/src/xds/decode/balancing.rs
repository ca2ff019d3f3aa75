//! How a cluster's endpoints are picked, and what routes hash for it.
//!
//! Both hashing policies mean the same here: a ring on which exactly the hashes of an endpoint that leaves move. Sizes
//! of tables and rings and the hash function are tuning of other implementations and are ignored.

use tulle_xds_proto::envoy::config::cluster::v3 as pb;
use tulle_xds_proto::envoy::config::cluster::v3::cluster::LbPolicy as PbLbPolicy;
use tulle_xds_proto::envoy::config::route::v3::route_action as rds;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::common::v3::ConsistentHashingLbConfig;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use tulle_xds_proto::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use tulle_xds_proto::envoy::r#type::v3::{HashPolicy as TcpHashPolicy, hash_policy as tcp};
use tulle_xds_proto::google::protobuf::Any;

use super::error::{At, DecodeError, refuse, unpack};
use super::header::header_name;
use crate::config::cluster::LbPolicy;
use crate::config::route::{HashOn, HashPolicy};

const NOT_BOUNDED: &str = "remove it: an endpoint's share is not bounded";
const NO_HOSTNAMES: &str = "remove it: endpoints are addresses";

/// The first policy of the list that is known here counts, as in Envoy; the legacy field only without a list.
pub(super) fn lb_policy(message: &pb::Cluster) -> Result<LbPolicy, DecodeError> {
    let Some(list) = &message.load_balancing_policy else {
        return legacy(message);
    };
    for (i, policy) in list.policies.iter().enumerate() {
        let config = policy.typed_extension_config.as_ref();
        let Some(any) = config.and_then(|config| config.typed_config.as_ref()) else {
            continue;
        };
        let known = known(any).at("typed_extension_config.typed_config");
        if let Some(known) = known.at_index("load_balancing_policy.policies", i)? {
            return Ok(known);
        }
    }
    Err(DecodeError::unsupported(
        "load_balancing_policy",
        "name least_request, round_robin, random, maglev or ring_hash",
    ))
}

fn known(any: &Any) -> Result<Option<LbPolicy>, DecodeError> {
    Ok(match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            Some(LbPolicy::LeastRequest)
        }
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            Some(LbPolicy::RoundRobin)
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => Some(LbPolicy::Random),
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
            let maglev: Maglev = unpack(any)?;
            hashing(maglev.consistent_hashing_lb_config.as_ref())?;
            Some(LbPolicy::ConsistentHash)
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            ring_hash(&unpack(any)?)?;
            Some(LbPolicy::ConsistentHash)
        }
        // The original destination has nothing to choose from.
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            Some(LbPolicy::default())
        }
        _ => None,
    })
}

fn hashing(config: Option<&ConsistentHashingLbConfig>) -> Result<(), DecodeError> {
    let field = "consistent_hashing_lb_config";
    let Some(config) = config else { return Ok(()) };
    let by_name = config.use_hostname_for_hashing;
    refuse(by_name, "use_hostname_for_hashing", NO_HOSTNAMES).at(field)?;
    let bounded = config.hash_balance_factor.is_some();
    refuse(bounded, "hash_balance_factor", NOT_BOUNDED).at(field)?;
    let own = !config.hash_policy.is_empty();
    refuse(own, "hash_policy", "put it into the routes").at(field)
}

#[expect(
    deprecated,
    reason = "the older places of what would change the meaning"
)]
fn ring_hash(message: &RingHash) -> Result<(), DecodeError> {
    let by_name = message.use_hostname_for_hashing;
    refuse(by_name, "use_hostname_for_hashing", NO_HOSTNAMES)?;
    let bounded = message.hash_balance_factor.is_some();
    refuse(bounded, "hash_balance_factor", NOT_BOUNDED)?;
    hashing(message.consistent_hashing_lb_config.as_ref())
}

fn legacy(message: &pb::Cluster) -> Result<LbPolicy, DecodeError> {
    match message.lb_policy() {
        PbLbPolicy::RoundRobin => Ok(LbPolicy::RoundRobin),
        PbLbPolicy::LeastRequest | PbLbPolicy::ClusterProvided => Ok(LbPolicy::LeastRequest),
        PbLbPolicy::Random => Ok(LbPolicy::Random),
        PbLbPolicy::RingHash | PbLbPolicy::Maglev => {
            let common = message.common_lb_config.as_ref();
            if let Some(config) = common.and_then(|of| of.consistent_hashing_lb_config.as_ref()) {
                let field = "common_lb_config.consistent_hashing_lb_config";
                let by_name = config.use_hostname_for_hashing;
                refuse(by_name, "use_hostname_for_hashing", NO_HOSTNAMES).at(field)?;
                let bounded = config.hash_balance_factor.is_some();
                refuse(bounded, "hash_balance_factor", NOT_BOUNDED).at(field)?;
            }
            Ok(LbPolicy::ConsistentHash)
        }
        PbLbPolicy::LoadBalancingPolicyConfig => Err(DecodeError::unsupported(
            "lb_policy",
            "use LEAST_REQUEST, ROUND_ROBIN, RANDOM, RING_HASH or MAGLEV",
        )),
    }
}

/// What requests of a route are hashed by.
pub(super) fn of_requests(policies: &[rds::HashPolicy]) -> Result<Vec<HashPolicy>, DecodeError> {
    let mut decoded = Vec::new();
    for (i, policy) in policies.iter().enumerate() {
        if let Some(on) = of_request(policy).at_index("hash_policy", i)? {
            let terminal = policy.terminal;
            decoded.push(HashPolicy { on, terminal });
        }
    }
    Ok(decoded)
}

fn of_request(policy: &rds::HashPolicy) -> Result<Option<HashOn>, DecodeError> {
    use rds::hash_policy::PolicySpecifier;
    let remedy = "hash by connection_properties.source_ip or header";
    match &policy.policy_specifier {
        Some(PolicySpecifier::ConnectionProperties(properties)) => {
            Ok(properties.source_ip.then_some(HashOn::SourceIp))
        }
        Some(PolicySpecifier::Header(header)) => {
            let rewrites = header.regex_rewrite.is_some();
            refuse(rewrites, "regex_rewrite", "hash the whole value").at("header")?;
            let name = header_name("header_name", &header.header_name).at("header")?;
            Ok(Some(HashOn::Header(name)))
        }
        Some(PolicySpecifier::Cookie(_)) => Err(DecodeError::unsupported("cookie", remedy)),
        Some(PolicySpecifier::QueryParameter(_)) => {
            Err(DecodeError::unsupported("query_parameter", remedy))
        }
        Some(PolicySpecifier::FilterState(_)) => {
            Err(DecodeError::unsupported("filter_state", remedy))
        }
        None => Err(DecodeError::missing("policy_specifier", remedy)),
    }
}

/// Whether opaque connections are hashed by the client's address, the only thing there is to hash.
pub(super) fn by_source(policies: &[TcpHashPolicy]) -> Result<bool, DecodeError> {
    for (i, policy) in policies.iter().enumerate() {
        if !matches!(
            policy.policy_specifier,
            Some(tcp::PolicySpecifier::SourceIp(_))
        ) {
            let error = DecodeError::unsupported("policy_specifier", "hash by source_ip");
            return Err(error).at_index("hash_policy", i);
        }
    }
    Ok(!policies.is_empty())
}
