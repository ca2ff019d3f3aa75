//! Roots of somebody else's, which a Secret has.

mod useless;

use super::*;

/// What somebody else signs with.
struct Above {
    key: KeyPair,
    params: CertificateParams,
    /// Its certificate and those above it, the root last.
    chain: Vec<String>,
}

impl Above {
    fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// A root whose certificate differs.
    fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = authority_params(name, BasicConstraints::Unconstrained);
        change(&mut params);
        let chain = vec![params.self_signed(&key).expect("a root").pem()];
        Self { key, params, chain }
    }

    /// A new one below this one, whose certificate differs.
    fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = authority_params(name, BasicConstraints::Constrained(0));
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let own = params.signed_by(&key, &issuer).expect("signed").pem();
        let chain = std::iter::once(own).chain(self.chain.clone()).collect();
        Self { key, params, chain }
    }

    /// A Secret as cert-manager makes it.
    fn secret(&self) -> Value {
        let (root, below) = self.chain.split_last().expect("a root");
        let certificate = if below.is_empty() {
            root.clone()
        } else {
            below.concat()
        };
        let bytes = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        json!({ "type": "kubernetes.io/tls", "data": {
            "tls.crt": bytes(&certificate),
            "tls.key": bytes(&self.key.serialize_pem()),
            "ca.crt": bytes(root),
        } })
    }

    /// The same with this one itself, or with a new one below it.
    fn provided(&self, below: bool) -> Value {
        if below {
            self.below("below", |_| {}).secret()
        } else {
            self.secret()
        }
    }
}

fn authority_params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn provided(name: &str, below: bool) -> Value {
    Above::new(name).provided(below)
}

/// One that is valid from then until then, in hours from now.
fn valid(name: &str, hours: std::ops::Range<i32>) -> Value {
    let now = SystemTime::now();
    let at = |hours: i32| match u32::try_from(hours) {
        Ok(hours) => now + HOUR * hours,
        Err(_) => now - HOUR * hours.unsigned_abs(),
    };
    let above = Above::with(name, |params| {
        params.not_before = at(hours.start).into();
        params.not_after = at(hours.end).into();
    });
    above.provided(false)
}

fn root_of(secret: &Value) -> String {
    let root = serde_json::from_value(secret["data"]["ca.crt"].clone());
    let root: k8s_openapi::ByteString = root.expect("base64");
    String::from_utf8(root.0).expect("PEM").replace('\r', "")
}

#[tokio::test(start_paused = true)]
async fn a_provided_root_signs_and_its_successor_is_announced_first() {
    for below in [false, true] {
        let lab = Lab {
            provided: true,
            ..Lab::default()
        };
        let (old, new) = (provided("old", below), provided("new", below));
        lab.server.put(PROVIDED, old.clone());
        let [first, second] = lab.two().await;
        assert_eq!(
            first.signer().trim(),
            root_of(&old).trim(),
            "below: {below}"
        );
        let refused = first
            .authority
            .rotate()
            .await
            .expect_err("it is not ours to replace");
        assert!(refused.to_string().contains("Secret tulle-system/provided"));
        lab.server.put(PROVIDED, new.clone());
        pass(Duration::from_secs(3)).await;
        for replica in [&first, &second] {
            assert_eq!(replica.signer().trim(), root_of(&old).trim());
            assert_eq!(replica.bundle(), 2);
        }
        pass(PROPAGATION + Duration::from_secs(2)).await;
        for replica in [&first, &second] {
            assert_eq!(replica.signer().trim(), root_of(&new).trim());
            replica
                .authority
                .identity()
                .current()
                .check()
                .expect("its own certificate holds");
        }
        pass(HOUR + Duration::from_secs(120)).await;
        assert_eq!(lab.published().trim(), root_of(&new).trim());
    }
}

#[tokio::test(start_paused = true)]
async fn another_key_below_the_same_root_signs_at_once() {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let root = Above::new("one");
    lab.server.put(PROVIDED, root.provided(true));
    let [first, second] = lab.two().await;
    let below = |replica: &Replica| replica.chain()[1].clone();
    let old = below(&first);
    // Nobody has to be told, so it does not matter who cannot be.
    lab.sink.1.store(true, Ordering::Relaxed);
    for replica in [&first, &second] {
        replica.authority.state.lock().published = false;
    }
    lab.server.put(PROVIDED, root.provided(true));
    pass(Duration::from_secs(2)).await;
    assert_ne!(below(&first), old);
    assert_eq!(below(&second), below(&first));
    assert_eq!(
        (first.bundle(), first.authority.metrics.roots.get()),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_root_that_nobody_provides_any_more_gives_way_to_one_of_our_own() {
    for noted in [true, false] {
        let mut lab = Lab {
            provided: true,
            ..Lab::default()
        };
        let corporate = provided("corporate", false);
        lab.server.put(PROVIDED, corporate.clone());
        let before = lab.two().await;
        assert_eq!(lab.state()["roots"][0]["provided"], true);
        if !noted {
            // As builds wrote it that took no note.
            let mut state = lab.state();
            let root = state["roots"][0].as_object_mut().expect("a root");
            root.remove("provided");
            lab.write(&state);
            pass(Duration::from_secs(5)).await;
            assert_eq!(lab.state()["roots"][0]["provided"], true);
            assert_eq!(lab.state()["stage"], "steady");
        }
        // The Secret may go with the option.
        for replica in before {
            replica.tasks.cancel();
        }
        lab.server.remove(PROVIDED);
        lab.provided = false;
        pass(Duration::from_secs(60)).await;
        let after = lab.two().await;
        let corporate = root_of(&corporate);
        for replica in &after {
            assert_eq!(replica.signer().trim(), corporate.trim());
            assert_eq!(replica.bundle(), 2, "another is announced");
        }
        pass(PROPAGATION + Duration::from_secs(10)).await;
        for replica in &after {
            assert_ne!(replica.signer().trim(), corporate.trim());
            assert_eq!(replica.bundle(), 2);
        }
        pass(HOUR + Duration::from_secs(120)).await;
        assert!(!lab.published().contains(corporate.trim()));
        let roots = lab.state()["roots"].as_array().expect("a list").clone();
        assert_eq!(roots.len(), 1, "its key is nowhere any more");
        let own = roots[0]["certificate"].clone();
        // It is ours, and stays.
        pass(HOUR * 3).await;
        assert_eq!(lab.state()["roots"][0]["certificate"], own);
        assert_eq!(lab.state()["stage"], "steady");
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_not_valid_is_neither_begun_with_nor_announced() {
    for (name, hours, word) in [
        ("expired", -2..-1, "has expired"),
        ("early", 1..9, "not valid yet"),
    ] {
        let lab = Lab {
            provided: true,
            ..Lab::default()
        };
        lab.server.put(PROVIDED, valid(name, hours.clone()));
        let error = lab.open("a", "cluster.local").await;
        let error = error.err().expect("it is not valid").to_string();
        assert!(error.contains(word), "{error}");
        assert!(lab.server.get(SECRET).is_none(), "nothing is kept of it");
        pass(Duration::from_secs(30)).await;
        let good = provided("good", false);
        lab.server.put(PROVIDED, good.clone());
        let [first, second] = lab.two().await;
        lab.server.put(PROVIDED, valid(name, hours));
        pass(Duration::from_secs(5)).await;
        assert_eq!(first.authority.metrics.plugged_broken.get(), 1, "{name}");
        for replica in [&first, &second] {
            assert_eq!(replica.bundle(), 1, "{name}");
            assert_eq!(replica.signer().trim(), root_of(&good).trim());
        }
        // What is put there instead counts.
        let next = provided("next", false);
        lab.server.put(PROVIDED, next.clone());
        pass(PROPAGATION + Duration::from_secs(10)).await;
        assert_eq!(first.signer().trim(), root_of(&next).trim(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_announced_can_be_taken_back_and_replaced_until_it_signs() {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let [old, wrong, right] = ["old", "wrong", "right"].map(|name| provided(name, false));
    lab.server.put(PROVIDED, old.clone());
    let replicas = lab.two().await;
    let bundle = |of: &[&Value]| {
        let roots = of.iter().map(|it| format!("{}\n", root_of(it).trim()));
        roots.collect::<String>()
    };
    for (now, expected) in [
        (&wrong, bundle(&[&old, &wrong])),
        (&old, bundle(&[&old])),
        (&wrong, bundle(&[&old, &wrong])),
        (&right, bundle(&[&old, &right])),
    ] {
        lab.server.put(PROVIDED, now.clone());
        pass(Duration::from_secs(5)).await;
        assert_eq!(lab.published(), expected);
        for replica in &replicas {
            assert_eq!(&**replica.authority.bundle().borrow(), expected);
            assert_eq!(replica.signer().trim(), root_of(&old).trim());
        }
    }
    pass(PROPAGATION + Duration::from_secs(5)).await;
    for replica in &replicas {
        assert_eq!(replica.signer().trim(), root_of(&right).trim());
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_root_has_expired_another_takes_its_place_at_once() {
    for running in [true, false] {
        for option in [true, false] {
            let mut lab = Lab {
                provided: true,
                ..Lab::default()
            };
            let short = valid("short", -1..2);
            lab.server.put(PROVIDED, short.clone());
            let before = lab.two().await;
            if !running || !option {
                for replica in &before {
                    replica.tasks.cancel();
                }
            }
            pass(HOUR * 3).await;
            let good = provided("good", false);
            lab.server.put(PROVIDED, good.clone());
            (lab.provided, lab.later) = (option, HOUR * 3);
            let replicas = if running && option {
                pass(Duration::from_secs(5)).await;
                before
            } else {
                lab.two().await
            };
            for replica in &replicas {
                let signer = replica.signer();
                assert_ne!(signer.trim(), root_of(&short).trim());
                assert_eq!(signer.trim() == root_of(&good).trim(), option);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_provided_root_that_is_no_good_is_refused_at_the_start_and_not_used_later() {
    let lab = Lab {
        provided: true,
        ..Lab::default()
    };
    let good = provided("good", false);
    let with = |key: &str, value: Value| {
        let mut secret = good.clone();
        secret["data"][key] = value;
        secret
    };
    let other = provided("other", false);
    let table = [
        ("no certificate", with("tls.crt", Value::Null), "tls.crt"),
        ("no root", with("ca.crt", Value::Null), "ca.crt"),
        (
            "another's key",
            with("tls.key", other["data"]["tls.key"].clone()),
            "key is another's",
        ),
        ("no PEM", with("tls.key", json!("e30=")), "key"),
        (
            "no root above",
            {
                let mut secret = provided("far", true);
                secret["data"]["ca.crt"] = good["data"]["ca.crt"].clone();
                secret
            },
            "ca.crt",
        ),
    ];
    let error = lab
        .open("a", "cluster.local")
        .await
        .err()
        .expect("there is none")
        .to_string();
    assert!(error.contains("--ca-issuer-secret"), "{error}");
    for (name, secret, word) in &table {
        lab.server.put(PROVIDED, secret.clone());
        let error = lab
            .open(name, "cluster.local")
            .await
            .err()
            .expect("no good")
            .to_string();
        assert!(
            error.contains("Secret tulle-system/provided") && error.contains(word),
            "{name}: {error}"
        );
        pass(Duration::from_secs(5)).await;
    }
    lab.server.put(PROVIDED, good.clone());
    let [first, _second] = lab.two().await;
    for (name, secret, _) in table {
        lab.server.put(PROVIDED, secret);
        pass(Duration::from_secs(2)).await;
        assert_eq!(first.authority.metrics.plugged_broken.get(), 1, "{name}");
        assert_eq!(
            (first.bundle(), first.signer().trim()),
            (1, root_of(&good).trim()),
            "{name}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_ends_before_it_signs_is_let_go_of_once_and_told() {
    let minute = Duration::from_secs(60);
    for (name, life, announced) in [
        ("while it is announced", minute, true),
        (
            "while it waits for the end of a rotation",
            30 * minute,
            false,
        ),
    ] {
        let lab = Lab {
            provided: true,
            ..Lab::default()
        };
        let good = provided("good", false);
        lab.server.put(PROVIDED, good.clone());
        let replica = lab.replica("a").await;
        pass(Duration::from_secs(5)).await;
        let signer = if announced {
            good
        } else {
            let better = provided("better", false);
            lab.server.put(PROVIDED, better.clone());
            pass(PROPAGATION + minute).await;
            better
        };
        let now = SystemTime::now();
        let short = Above::with("short", |params| {
            params.not_before = (now - HOUR).into();
            params.not_after = (now + life).into();
        });
        lab.server.put(PROVIDED, short.provided(false));
        pass(minute / 2).await;
        assert_eq!(replica.bundle(), 2, "{name}");
        assert_eq!(replica.authority.metrics.plugged_broken.get(), 0, "{name}");

        let writes = || lab.server.calls(&format!("PUT {SECRET}"));
        let before = writes();
        // Whoever never rests would keep the clock from moving by itself.
        tokio::time::advance(2 * HOUR).await;
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(writes() <= before + 2, "{name}: {}", writes() - before);
        pass(minute).await;
        assert_eq!(lab.state()["stage"], "steady", "{name}");
        assert_eq!(replica.authority.metrics.plugged_broken.get(), 1, "{name}");
        assert_eq!(replica.signer().trim(), root_of(&signer).trim(), "{name}");
        assert_eq!(lab.published().trim(), root_of(&signer).trim(), "{name}");
        // What is put there instead counts.
        let next = provided("next", false);
        lab.server.put(PROVIDED, next.clone());
        pass(PROPAGATION + minute).await;
        assert_eq!(replica.signer().trim(), root_of(&next).trim(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_root_ends_while_leaves_of_the_one_before_live_that_one_signs_again() {
    for running in [true, false] {
        for before_its_end in [true, false] {
            let name = format!("running: {running}, before its end: {before_its_end}");
            let mut lab = Lab {
                provided: true,
                ..Lab::default()
            };
            let minute = Duration::from_secs(60);
            let old = provided("old", false);
            lab.server.put(PROVIDED, old.clone());
            let before = lab.two().await;
            let now = SystemTime::now();
            let short = Above::with("short", |params| {
                params.not_before = (now - HOUR).into();
                params.not_after = (now + 10 * minute).into();
            });
            lab.server.put(PROVIDED, short.secret());
            pass(PROPAGATION + minute).await;
            assert_eq!(before[0].signer().trim(), short.chain[0].trim(), "{name}");
            let new = provided("new", false);
            if before_its_end {
                lab.server.put(PROVIDED, new.clone());
            }
            if !running {
                for replica in &before {
                    replica.tasks.cancel();
                }
            }
            pass(7 * minute).await;
            lab.later = 11 * minute;
            let after = if running { before } else { lab.two().await };
            lab.server.put(PROVIDED, new.clone());
            pass(minute).await;
            let both = [&old, &new].map(|it| format!("{}\n", root_of(it).trim()));
            assert_eq!(lab.published(), both.concat(), "{name}");
            for replica in &after {
                assert_eq!(replica.signer().trim(), root_of(&old).trim(), "{name}");
            }
            pass(PROPAGATION + minute).await;
            for replica in &after {
                assert_eq!(replica.signer().trim(), root_of(&new).trim(), "{name}");
            }
            assert_eq!(lab.published(), both.concat(), "{name}");
        }
    }
}
