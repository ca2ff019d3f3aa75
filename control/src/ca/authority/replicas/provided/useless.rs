//! Roots and what is below them, kept to other uses and names than those of a mesh.

use rcgen::{ExtendedKeyUsagePurpose, GeneralSubtree, NameConstraints};

use super::*;

fn for_servers_only(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
}

fn for_names_in(params: &mut CertificateParams, domains: &[&str]) {
    let domains = domains.iter().map(ToString::to_string);
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: domains.map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: Vec::new(),
    });
}

/// Secrets by whose keys nothing can be signed that peers take, and what is said of them; the first two are below `root`.
fn useless(root: &Above) -> [(&'static str, Value, &'static str); 4] {
    let elsewhere = |params: &mut CertificateParams| for_names_in(params, &["corp.example"]);
    let last = root.below("last", |_| {});
    [
        (
            "for servers only",
            root.below("below", for_servers_only).secret(),
            "lacks the extended key usage clientAuth",
        ),
        ("of a path that is used up", last.provided(true), "PathLen"),
        (
            "for names elsewhere",
            Above::new("other").below("below", elsewhere).secret(),
            "NameConstraint",
        ),
        (
            "a root for names elsewhere",
            Above::with("other", elsewhere).secret(),
            "NameConstraint",
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_provided_root_is_not_begun_with_if_peers_would_refuse_what_it_signs() {
    for (name, secret, word) in useless(&Above::new("one")) {
        let lab = Lab {
            provided: true,
            ..Lab::default()
        };
        lab.server.put(PROVIDED, secret);
        let error = lab.open("a", "cluster.local").await.err();
        let error = error.expect(name).to_string();
        assert!(
            error.contains("Secret tulle-system/provided: peers refuse") && error.contains(word),
            "{name}: {error}"
        );
        assert!(lab.server.get(SECRET).is_none(), "nothing is kept of it");
        // What is kept to our names is good enough.
        let ours = |params: &mut CertificateParams| {
            for_names_in(params, &["tulle-system.svc", "cluster.local"]);
        };
        let good = Above::new("two").below("below", ours).secret();
        lab.server.put(PROVIDED, good.clone());
        pass(Duration::from_secs(30)).await;
        let replica = lab.replica("a").await;
        assert_eq!(replica.signer().trim(), root_of(&good).trim(), "{name}");
        let own = replica.authority.identity().current();
        own.check().expect("its own certificate holds");
    }
}

#[tokio::test(start_paused = true)]
async fn a_provided_root_is_neither_announced_nor_used_if_peers_would_refuse_what_it_signs() {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let root = Above::new("one");
    let good = root.provided(true);
    lab.server.put(PROVIDED, good.clone());
    let [first, second] = lab.two().await;
    let (state, chain) = (lab.state(), first.chain()[1..].to_vec());
    for (name, secret, _) in useless(&root) {
        lab.server.put(PROVIDED, secret);
        pass(PROPAGATION + Duration::from_secs(30)).await;
        assert_eq!(first.authority.metrics.plugged_broken.get(), 1, "{name}");
        assert_eq!(lab.state(), state, "{name}");
        for replica in [&first, &second] {
            assert_eq!(replica.bundle(), 1, "{name}");
            assert_eq!(replica.chain()[1..], chain, "{name}");
        }
    }
    let next = provided("next", true);
    lab.server.put(PROVIDED, next.clone());
    pass(PROPAGATION + Duration::from_secs(30)).await;
    assert_eq!(first.authority.metrics.plugged_broken.get(), 0);
    assert_eq!(first.signer().trim(), root_of(&next).trim());
}

/// A root as builds saved it that tried nothing.
fn in_state(above: &Above) -> Value {
    let secret = above.key.serialize_pem() + &above.chain.concat();
    json!({ "certificate": above.chain.last(), "secret": secret, "provided": true })
}

#[tokio::test(start_paused = true)]
async fn a_state_by_whose_root_nobody_can_be_served_is_not_begun_with() {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let good = provided("good", false);
    lab.server.put(PROVIDED, good.clone());
    let replica = lab.replica("a").await;
    replica.tasks.cancel();
    let bad = Above::new("bad").below("below", for_servers_only);
    let mut state = lab.state();
    state["roots"][0] = in_state(&bad);
    lab.write(&state);
    pass(Duration::from_secs(30)).await;
    lab.server.put(PROVIDED, bad.secret());
    let error = lab.open("b", "cluster.local").await.err();
    let error = error.expect("there is none that is good").to_string();
    assert!(error.contains("clientAuth"), "{error}");
    assert_eq!(lab.state(), state, "it is left as it is");
    pass(Duration::from_secs(30)).await;
    lab.server.put(PROVIDED, good.clone());
    let replica = lab.replica("c").await;
    assert_eq!(replica.signer().trim(), root_of(&good).trim());
}

#[tokio::test(start_paused = true)]
async fn where_a_state_has_switched_to_a_root_by_which_nobody_can_be_served_the_one_before_signs_again()
 {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let good = provided("good", false);
    lab.server.put(PROVIDED, good.clone());
    lab.replica("a").await.tasks.cancel();
    let mut state = lab.state();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = now.expect("after 1970").as_secs();
    state["stage"] = json!({ "switched": { "since": since, "longest_leaf": 3600 } });
    let bad = Above::new("bad").below("below", for_servers_only);
    let roots = state["roots"].as_array_mut().expect("a list");
    roots.push(in_state(&bad));
    lab.write(&state);
    lab.server.put(PROVIDED, bad.secret());
    pass(Duration::from_secs(30)).await;
    let replica = lab.replica("b").await;
    assert_eq!(replica.signer().trim(), root_of(&good).trim());
    assert_eq!(lab.state()["stage"], "steady");
    pass(Duration::from_secs(30)).await;
    assert_eq!(replica.authority.metrics.plugged_broken.get(), 1);
    assert_eq!(
        (replica.bundle(), replica.signer().trim()),
        (1, root_of(&good).trim())
    );
}
