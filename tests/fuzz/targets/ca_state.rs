//! The file in which the CA keeps its roots.
//!
//! The input is the file; `$a`, `$b` and `$c` in it stand for certificates of roots, `$A`, `$B` and `$C` for their secrets. If the
//! CA begins with it, then at every stage whatever it signs can be verified by the bundle that it publishes, which has one
//! root, or two during a rotation; what it saves it begins with again; and a rotation ends when its time has come.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;
use tulle_control::fuzz::CaState;
use tulle_identity::verify::{Expected, Usage, verify_chain};
use tulle_identity::{Root, SpiffeId, TrustBundle, TrustDomain};

/// Steps of a rotation.
const STEPS: usize = 2;

struct Rig {
    /// What stands for what.
    texts: Vec<(&'static str, String)>,
    id: SpiffeId,
    now: SystemTime,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let domain = TrustDomain::new("mesh.test").expect("a name");
    let mut texts = Vec::new();
    for (certificate, secret) in [("$a", "$A"), ("$b", "$B"), ("$c", "$C")] {
        let root = Root::generate(&domain, Duration::from_secs(10 * 86_400)).expect("a root");
        let escaped = |text: &str| text.replace('\n', "\\n");
        texts.push((certificate, escaped(&root.cert_pem())));
        texts.push((secret, escaped(&root.to_pem())));
    }
    Rig {
        texts,
        id: SpiffeId::new(&domain, "shop", "web").expect("an id"),
        now: SystemTime::now(),
    }
});

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut text = text.to_owned();
    for (name, content) in &RIG.texts {
        // Each of them once or twice: no input means a file of many megabytes.
        text = text.replacen(name, content, 2);
    }
    let Ok(mut state) = CaState::read(&text) else {
        return;
    };
    let mut now = RIG.now;
    for _ in 0..=STEPS {
        holds(&state);
        let (next, due) = state.step(now).expect("it was taken before");
        state = next;
        match due {
            Some(due) => now = now.max(due),
            // Steady, or moved just now, or at a time that never comes.
            None => continue,
        }
    }
    holds(&state);
});

/// What it signs can be verified by what it publishes.
fn holds(state: &CaState) {
    let bundle = TrustBundle::from_pem(state.bundle().as_bytes()).expect("it is published");
    let roots = bundle.roots().len();
    assert!(
        roots == 1 || roots == 2 && !state.is_steady(),
        "{roots} roots"
    );
    let Ok(leaf) = state.leaf(&RIG.id) else {
        // Its root is of another trust domain, or ends too soon.
        return;
    };
    let [leaf, rest @ ..] = leaf.chain() else {
        panic!("a leaf");
    };
    let verified = verify_chain(
        leaf,
        rest,
        &bundle,
        Usage::Server,
        Expected::Ids(std::slice::from_ref(&RIG.id)),
        UnixTime::now(),
    );
    assert_eq!(verified.as_ref(), Ok(&RIG.id));
}
