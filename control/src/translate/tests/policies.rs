//! PeerAuthentication: which policy counts for which port of which pod.

use std::collections::BTreeSet;

use tulle_xds_proto::envoy::config::listener::v3::Listener;

use super::*;

#[test]
fn the_closest_policy_decides_and_ports_come_first() {
    let policy = |namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p-{}, namespace: {namespace}}}\nspec: {spec}\n",
            spec.len()
        )
    };
    let disable = "{mtls: {mode: DISABLE}}";
    let strict = "{mtls: {mode: STRICT}}";
    let workload = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}";
    let port = "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    let table = [
        ("none", String::new(), true),
        ("mesh", policy("tulle-system", disable), false),
        (
            "namespace over mesh",
            policy("tulle-system", disable) + &policy("shop", strict),
            true,
        ),
        (
            "workload over namespace",
            policy("shop", disable) + &policy("shop", workload),
            true,
        ),
        ("port over workload", policy("shop", port), false),
        ("another namespace", policy("other", disable), true),
    ];
    for (name, policies, mtls) in table {
        let found = endpoints(&world(&format!("{BASE}{policies}")), &client("x"), WEB);
        assert_eq!(found[0], format!("10.1.0.1 HEALTHY {mtls}"), "{name}");
    }
}

#[test]
fn a_pod_that_ends_mtls_itself_is_said_to_be_foreign_as_long_as_it_is_called_so() {
    let text = BASE.replace("tulle.dev/proxied: \"true\"", "tulle.dev/proxied: grpc");
    let off = "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n\
         spec: {mtls: {mode: DISABLE}}\n";
    for (text, expected) in [
        (BASE.to_owned(), (true, false)),
        (text.clone(), (true, true)),
        (text + off, (false, false)),
    ] {
        let assignment: ClusterLoadAssignment =
            get(&world(&text), &client("x"), ResourceType::Endpoints, WEB).expect("known");
        let metadata = assignment.endpoints[0].lb_endpoints[0].metadata.as_ref();
        let any = metadata.and_then(|it| it.typed_filter_metadata.get(ENDPOINT_METADATA));
        let endpoint: Endpoint = unpack(any.expect("a pod is behind it")).expect("ours");
        assert_eq!((endpoint.mtls, endpoint.foreign), expected);
    }
}

#[test]
fn inbound_refuses_plaintext_under_strict_only() {
    let strict = "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\n\
         spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}\n";
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    let plaintext = |text: &str| -> BTreeSet<u32> {
        let listener: Listener =
            get(&world(text), &view, ResourceType::Listener, "inbound").expect("own pod");
        let plain = listener
            .filter_chains
            .iter()
            .filter(|chain| chain.transport_socket.is_none());
        plain
            .map(|chain| {
                chain
                    .filter_chain_match
                    .as_ref()
                    .and_then(|it| it.destination_port)
                    .map_or(0, |it| it.value)
            })
            .collect()
    };
    assert_eq!(plaintext(BASE), BTreeSet::from([0, 82, 8080, 8081]));
    assert_eq!(
        plaintext(&format!("{BASE}{strict}")),
        BTreeSet::from([8080])
    );
    assert!(
        get::<Listener>(
            &world(BASE),
            &client("shop"),
            ResourceType::Listener,
            "inbound"
        )
        .is_none()
    );
}

/// A policy of Tulle's; `spec` without the braces.
fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const WORKLOAD: &str = "selector: {matchLabels: {app: web}}";
const STRICT: &str = "mtls: {mode: STRICT}";
const DISABLE: &str = "mtls: {mode: DISABLE}";

/// Whether peers call web-1 with mTLS, and whether it accepts plaintext, on port 8080.
fn state(policies: &str) -> (bool, bool) {
    let world = world(&format!("{BASE}{policies}"));
    let mtls = endpoints(&world, &client("x"), WEB)[0].ends_with("true");
    let view = ProxyView {
        pod: Some(ObjectKey::new("shop", "web-1")),
        ..client("shop")
    };
    let listener: Listener =
        get(&world, &view, ResourceType::Listener, "inbound").expect("own pod");
    let of_port = |it: &tulle_xds_proto::envoy::config::listener::v3::FilterChainMatch| {
        it.destination_port.as_ref().map(|port| port.value) == Some(8080)
    };
    let plaintext = listener.filter_chains.iter().any(|chain| {
        chain.transport_socket.is_none() && chain.filter_chain_match.as_ref().is_some_and(of_port)
    });
    (mtls, plaintext)
}

/// What [`state`] says under STRICT, PERMISSIVE and DISABLE.
const UNDER_STRICT: (bool, bool) = (true, false);
const UNDER_PERMISSIVE: (bool, bool) = (true, true);
const UNDER_DISABLE: (bool, bool) = (false, true);

#[test]
fn unset_leaves_the_decision_to_the_wider_scope() {
    let unset = "mtls: {mode: UNSET}";
    let both = |name: &str, spec: &str| policy(name, "shop", &format!("{WORKLOAD}, {spec}"));
    let mesh = policy("mesh", "tulle-system", STRICT);
    let namespace = policy("ns", "shop", DISABLE);
    let ports = "portLevelMtls: {8080: {mode: UNSET}}";
    for (name, policies, expected) in [
        ("nothing said", both("w", unset), UNDER_PERMISSIVE),
        ("workload to mesh", both("w", unset) + &mesh, UNDER_STRICT),
        (
            "workload to namespace",
            both("w", unset) + &namespace + &mesh,
            UNDER_DISABLE,
        ),
        (
            "namespace to mesh",
            policy("ns", "shop", unset) + &mesh,
            UNDER_STRICT,
        ),
        (
            "port to workload",
            both("w", &format!("{DISABLE}, {ports}")) + &mesh,
            UNDER_DISABLE,
        ),
        (
            "port to mesh",
            both("w", &format!("{unset}, {ports}")) + &mesh,
            UNDER_STRICT,
        ),
    ] {
        assert_eq!(state(&policies), expected, "{name}");
    }
}

#[test]
fn a_selector_that_selects_nothing_changes_nothing() {
    let nothing = format!("selector: {{matchLabels: {{app: other}}}}, {STRICT}");
    assert_eq!(state(&policy("p", "shop", &nothing)), UNDER_PERMISSIVE);
    let mesh = policy("mesh", "tulle-system", DISABLE);
    assert_eq!(
        state(&(policy("p", "shop", &nothing) + &mesh)),
        UNDER_DISABLE
    );
    let service = format!("targetRefs: [{{group: \"\", kind: Service, name: gone}}], {STRICT}");
    assert_eq!(state(&policy("p", "shop", &service)), UNDER_PERMISSIVE);
    let service = service.replace("gone", "web");
    assert_eq!(state(&policy("p", "shop", &service)), UNDER_STRICT);
}

#[test]
fn the_root_namespace_speaks_for_the_mesh_and_last() {
    let selected = format!("{WORKLOAD}, {STRICT}");
    for (name, policies, expected) in [
        (
            "of the mesh",
            policy("p", "tulle-system", STRICT),
            UNDER_STRICT,
        ),
        (
            "of workloads everywhere",
            policy("p", "tulle-system", &selected),
            UNDER_STRICT,
        ),
        (
            "of workloads, in another namespace",
            policy("p", "other", &selected),
            UNDER_PERMISSIVE,
        ),
        (
            "below the pod's own namespace",
            policy("p", "tulle-system", &selected)
                + &policy("w", "shop", &format!("{WORKLOAD}, {DISABLE}")),
            UNDER_DISABLE,
        ),
        (
            "of workloads above a namespace's",
            policy("p", "tulle-system", &selected) + &policy("n", "shop", DISABLE),
            UNDER_STRICT,
        ),
    ] {
        assert_eq!(state(&policies), expected, "{name}");
    }
}

#[test]
fn ports_are_container_ports() {
    let port = |number: u16| {
        let spec = format!("{WORKLOAD}, portLevelMtls: {{{number}: {{mode: STRICT}}}}");
        policy("p", "shop", &spec)
    };
    assert_eq!(state(&port(8080)), UNDER_STRICT);
    assert_eq!(state(&port(80)), UNDER_PERMISSIVE, "the Service's port");
}

#[test]
fn of_two_policies_of_a_workload_the_first_counts_and_the_other_is_reported() {
    let strict = format!("{WORKLOAD}, {STRICT}");
    let disable = format!("{WORKLOAD}, {DISABLE}");
    let young = |policy: String| {
        policy.replace(
            "namespace: shop}",
            "namespace: shop, creationTimestamp: \"2025-01-01T00:00:00Z\"}",
        )
    };
    let reported = |policies: &str| -> Vec<(String, String, usize)> {
        let world = world(&format!("{BASE}{policies}"));
        let found = overruled(&world).into_iter();
        found
            .map(|it| {
                (
                    it.policy.key.to_string(),
                    it.by.key.to_string(),
                    it.pods.len(),
                )
            })
            .collect()
    };
    let of = |policy: &str, by: &str, pods| vec![(policy.to_owned(), by.to_owned(), pods)];

    let by_name = policy("b", "shop", &disable) + &policy("a", "shop", &strict);
    assert_eq!(state(&by_name), UNDER_STRICT);
    assert_eq!(reported(&by_name), of("shop/b", "shop/a", 2));

    // Manifests without a time are the youngest.
    let by_age = young(policy("b", "shop", &disable)) + &policy("a", "shop", &strict);
    assert_eq!(state(&by_age), UNDER_DISABLE);
    assert_eq!(reported(&by_age), of("shop/a", "shop/b", 2));

    let of_namespace = policy("b", "shop", DISABLE) + &policy("a", "shop", STRICT);
    assert_eq!(state(&of_namespace), UNDER_STRICT);
    assert_eq!(reported(&of_namespace), of("shop/b", "shop/a", 0));

    let one_each = policy("a", "shop", STRICT) + &policy("b", "shop", &disable);
    assert_eq!(state(&one_each), UNDER_DISABLE);
    assert_eq!(reported(&one_each), vec![], "different scopes");
    let apart = policy("a", "shop", &strict)
        + &policy("b", "shop", &disable.replace("app: web", "app: other"));
    assert_eq!(reported(&apart), vec![], "no pod in common");
}
