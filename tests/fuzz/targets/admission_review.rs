//! Reviews of the API server.
//!
//! The input is the body of a request. Whatever it is, there is an answer that the API server can read, of a bounded length
//! beside the patch, and the same one again. A pod gets a patch only where it is let in to be injected: then the patch fits,
//! the pod that it makes gets no other one, and its sidecar can read the environment that it is given. A copy of an injected
//! pod may get the label that it lacks, and nothing else.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde_json::Value;
use tulle_fuzz::pods::{environment, same_but_for_label, sidecar};
use tulle_injector::{InjectorConfig, Namespace, Reviewed, Reviewer, SkipReason, Verdict};
use tulle_proxy::settings::Startup;
use tulle_runtime::env::Env;

/// Longest answer without its patch, beside the request's id: warnings, or a message in two places.
const MAX_ANSWER: usize = 16 << 10;

tulle_fuzz::target!(|data: &[u8]| {
    let reviewer = Reviewer {
        config: InjectorConfig::default(),
    };
    let review = |body: &[u8]| {
        // Some namespaces are not known.
        let known = |name: &str| (!name.starts_with('u')).then(|| Namespace::enabled(name));
        let reviewed = reviewer.review(body, known);
        let answer = serde_json::from_slice(&reviewed.response).expect("JSON");
        (reviewed, answer)
    };
    let (reviewed, answer) = review(data);
    assert_eq!(review(data).1, answer);
    let response = check(&reviewed, &answer, data);
    let is_copy = reviewed.verdict == Verdict::Skipped(SkipReason::AlreadyInjected);
    let is_patched = response.get("patch").is_some();
    if !(matches!(reviewed.verdict, Verdict::Injected(_)) || is_copy && is_patched) {
        assert!(response.get("patch").is_none() && response.get("patchType").is_none());
        return;
    }
    let mut review_again: Value = serde_json::from_slice(data).expect("it was read");
    let pod = &mut review_again["request"]["object"];
    let before = pod.clone();
    json_patch::patch(pod, &patch(response)).expect("the patch fits");
    if is_copy {
        assert!(same_but_for_label(&before, pod));
    } else {
        let variables = environment(sidecar(pod).expect("a sidecar"));
        if let Err(error) = Startup::from_env(Env::from_pairs(variables)) {
            panic!("the sidecar cannot start: {error}");
        }
    }
    let (again, answer) = review(review_again.to_string().as_bytes());
    assert_eq!(again.verdict, Verdict::Skipped(SkipReason::AlreadyInjected));
    assert!(answer["response"].get("patch").is_none());
});

/// That an answer says what came of the review, and how the response in it says so.
fn check<'a>(reviewed: &Reviewed, answer: &'a Value, data: &[u8]) -> &'a Value {
    assert!(!reviewed.message.is_empty() && !reviewed.message.contains(char::is_control));
    if let Verdict::Malformed(_) = reviewed.verdict {
        assert_eq!(answer["kind"], "Status");
        assert_eq!(answer["code"], reviewed.status);
        assert!((400..500).contains(&reviewed.status));
        assert!(reviewed.response.len() < MAX_ANSWER);
        return answer;
    }
    assert_eq!(
        (reviewed.status, &answer["kind"]),
        (200, &"AdmissionReview".into())
    );
    let response = &answer["response"];
    let refused = matches!(reviewed.verdict, Verdict::Refused(_));
    assert_eq!(response["allowed"], !refused);
    assert_eq!(response.get("status").is_some(), refused);
    let uid = response["uid"].as_str().expect("an id");
    assert!(!uid.is_empty());
    let patch = response["patch"].as_str().unwrap_or_default();
    // An id is as long as the request has it, written in as many as six bytes for one.
    assert!(reviewed.response.len() < MAX_ANSWER + patch.len() + 6 * data.len());
    response
}

fn patch(response: &Value) -> Patch {
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = response["patch"].as_str().expect("a patch");
    let patch = STANDARD.decode(patch).expect("base64");
    serde_json::from_slice(&patch).expect("a patch")
}
