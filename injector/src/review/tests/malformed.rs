//! Bodies that are no review.

use super::*;

/// What is answered, with what there is to read in it.
fn broken(body: &[u8]) -> (Reviewed, Value) {
    let reviewed = reviewer().review(body, |name| panic!("{name} must not be looked up"));
    let status = serde_json::from_slice(&reviewed.response).expect("JSON");
    (reviewed, status)
}

#[test]
fn a_body_that_is_no_review_is_answered_with_a_status_that_says_why() {
    let at = |pointer: &str, value: Value| with(review(&pod()), pointer, value).to_string();
    let beta = at("/apiVersion", json!("admission.k8s.io/v1beta1"));
    let rows = [
        (
            String::new(),
            "json",
            "the body is no AdmissionReview in JSON: EOF",
        ),
        (
            "{".to_owned(),
            "json",
            "the body is no AdmissionReview in JSON: EOF",
        ),
        (
            "[]".to_owned(),
            "json",
            "the body is no AdmissionReview in JSON: ",
        ),
        (
            "null".to_owned(),
            "json",
            "the body is no AdmissionReview in JSON: ",
        ),
        (
            "{} {}".to_owned(),
            "json",
            "the body is no AdmissionReview in JSON: trailing",
        ),
        (
            "{}".to_owned(),
            "version",
            "this is a \"\" of \"\", and AdmissionReview of admission.k8s.io/v1 is",
        ),
        (
            beta,
            "version",
            "this is a \"AdmissionReview\" of \"admission.k8s.io/v1beta1\", and",
        ),
        (
            at("/apiVersion", json!("admission.k8s.io/v2")),
            "version",
            "this is a \"AdmissionReview\" of",
        ),
        (
            at("/kind", json!("Pod")),
            "version",
            "this is a \"Pod\" of \"admission.k8s.io/v1\", and",
        ),
        (
            at("/request", Value::Null),
            "request",
            "the review has no request: ",
        ),
        (
            at("/request", json!(1)),
            "request",
            "the review has no request: ",
        ),
        (
            at("/request/uid", json!("")),
            "request",
            "the review has no request.uid: ",
        ),
        (
            at("/request/uid", Value::Null),
            "request",
            "the review has no request.uid: ",
        ),
        (
            at("/request/operation", json!(1)),
            "request",
            "the review's request cannot be read: invalid type",
        ),
        (
            at("/request/kind", json!("Pod")),
            "request",
            "the review's request cannot be read: invalid type",
        ),
    ];
    for (body, flaw, expected) in rows {
        let (reviewed, status) = broken(body.as_bytes());
        assert_eq!(reviewed.verdict.names(), ("malformed", flaw), "{body}");
        assert_eq!(
            (reviewed.status, &status["code"]),
            (400, &json!(400)),
            "{body}"
        );
        assert_eq!(
            (&status["kind"], &status["status"]),
            (&json!("Status"), &json!("Failure"))
        );
        assert_eq!(status["message"], reviewed.message);
        assert!(
            reviewed.message.starts_with(expected),
            "{}",
            reviewed.message
        );
    }
}

#[test]
fn a_review_of_another_version_says_which_one_is_spoken_and_where_that_is_written() {
    let (reviewed, _) = broken(
        br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":7}"#,
    );
    assert!(
        reviewed
            .message
            .contains("admission.k8s.io/v1 is spoken here"),
        "{}",
        reviewed.message
    );
    assert!(
        reviewed.message.contains("admissionReviewVersions"),
        "{}",
        reviewed.message
    );
}

#[test]
fn a_body_of_more_than_3_mib_is_not_read_and_one_of_3_mib_is() {
    let mut body = review(&pod()).to_string().into_bytes();
    body.resize(MAX_REVIEW, b' ');
    let known = |_: &str| Some(Namespace::enabled("shop"));
    assert_eq!(
        reviewer().review(&body, known).verdict.names().0,
        "injected"
    );
    body.push(b' ');
    let (reviewed, status) = broken(&body);
    assert_eq!(reviewed.verdict, Verdict::Malformed(Flaw::Size));
    assert_eq!(
        (reviewed.status, &status["reason"]),
        (413, &json!("RequestEntityTooLarge"))
    );
    assert!(
        reviewed.message.contains("3145729 bytes"),
        "{}",
        reviewed.message
    );
}

#[test]
fn a_pod_nested_beyond_reason_is_not_read_and_its_neighbour_is() {
    let nested = |depth: usize| {
        let review = with(review(&pod()), "/request/object/spec/future", json!("HERE")).to_string();
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        review.replace("\"HERE\"", &deep)
    };
    let known = |_: &str| Some(Namespace::enabled("shop"));
    let reviewed = reviewer().review(nested(100).as_bytes(), known);
    assert_eq!(reviewed.verdict.names().0, "injected");
    for depth in [128, 1_000_000] {
        let (reviewed, _) = broken(nested(depth).as_bytes());
        assert_eq!(reviewed.verdict, Verdict::Malformed(Flaw::Json));
        assert!(
            reviewed.message.contains("recursion limit"),
            "{}",
            reviewed.message
        );
    }
}
