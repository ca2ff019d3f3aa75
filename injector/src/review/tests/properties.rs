//! What holds for every pod.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::pods;

proptest! {
    #[test]
    fn row_53_a_patch_is_the_same_each_time_fits_makes_a_pod_and_is_the_last(pod in pods::pod()) {
        let pod = with(pod, "/apiVersion", json!("v1"));
        let (reviewed, answer) = ask(&review(&pod));
        prop_assert_eq!(&ask(&review(&pod)).1, &answer);
        prop_assert_eq!(reviewed.status, 200);
        let Verdict::Injected(_) = reviewed.verdict else {
            prop_assert_eq!(patch(&answer), None);
            return Ok(());
        };
        let patched = patched(&pod, &answer);
        prop_assert!(Pod::deserialize(&patched).is_ok());
        prop_assert_eq!(&patched["spec"]["unknown"], &pod["spec"]["unknown"]);
        let (reviewed, answer) = ask(&review(&patched));
        prop_assert_eq!(reviewed.verdict, Verdict::Skipped(SkipReason::AlreadyInjected));
        prop_assert_eq!(patch(&answer), None);
    }

    #[test]
    fn odd_reviews_are_answered(object in pods::odd_json(), request in pods::odd_json()) {
        let (reviewed, answer) = ask(&review(&object));
        prop_assert_eq!(reviewed.status, 200);
        prop_assert_eq!(&answer["kind"], "AdmissionReview");
        let (reviewed, answer) = ask(&with(review(&object), "/request", request));
        prop_assert_eq!(reviewed.status, 400);
        prop_assert_eq!(&answer["kind"], "Status");
    }
}
