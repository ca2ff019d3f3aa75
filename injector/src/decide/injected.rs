//! Whether a pod has a sidecar of ours. Of one that says so, all parts have to be there, whatever its author says of them. Of
//! one that does not: capture and sidecar with our image, arguments, users and volumes.
//!
//! Strict enough that whoever passes without a word has a sidecar: a container that is none would have to be our program.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use tulle_runtime::names::{PROXY_UID, containers as names, files};

use crate::InjectorConfig;
use crate::patch::own::is_own;

/// Whether all parts are there, by their names and places. One that says how the sidecar is to be is none yet.
pub(super) fn is_whole(spec: &PodSpec) -> bool {
    let is_capture = |it: &Container| it.name == names::CAPTURE;
    let is_sidecar = |it: &Container| it.name == names::PROXY && !is_own(it);
    has_parts(spec, is_capture, is_sidecar)
}

/// Whether all parts are there, and ours.
pub(super) fn is_ours(spec: &PodSpec, config: &InjectorConfig) -> bool {
    has_parts(
        spec,
        |it| is_capture(it, config),
        |it| is_sidecar(it, config),
    )
}

fn has_parts(
    spec: &PodSpec,
    is_capture: impl Fn(&Container) -> bool,
    is_sidecar: impl Fn(&Container) -> bool,
) -> bool {
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let has_volume = |name: &str| {
        let mut volumes = spec.volumes.iter().flatten();
        volumes.any(|volume| volume.name == name)
    };
    let native = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let mut sidecars = init.iter().filter(native).chain(&spec.containers);
    init.iter().any(is_capture)
        && sidecars.any(is_sidecar)
        && has_volume(names::TOKEN_VOLUME)
        && has_volume(names::STATE_VOLUME)
}

fn is_capture(container: &Container, config: &InjectorConfig) -> bool {
    let args = container.args.as_deref().unwrap_or_default();
    let context = container.security_context.as_ref();
    let capabilities = context.and_then(|it| it.capabilities.as_ref()?.add.as_ref());
    container.name == names::CAPTURE
        && is_program(container, config)
        && args.first().is_some_and(|it| it == "capture")
        && context.and_then(|it| it.run_as_user) == Some(0)
        && capabilities.is_some_and(|it| it.iter().any(|it| it == "NET_ADMIN"))
}

fn is_sidecar(container: &Container, config: &InjectorConfig) -> bool {
    let context = container.security_context.as_ref();
    let mounts = |volume: &str, path: &str| {
        let mut all = container.volume_mounts.iter().flatten();
        all.any(|it| it.name == volume && it.mount_path == path)
    };
    container.name == names::PROXY
        && is_program(container, config)
        && container.args.as_deref() == Some(&["run".to_owned()])
        && context.and_then(|it| it.run_as_user) == Some(i64::from(PROXY_UID))
        && mounts(names::TOKEN_VOLUME, files::SECRETS_DIR)
        && mounts(names::STATE_VOLUME, files::STATE_DIR)
}

/// Whether a container runs our program, of whatever version.
fn is_program(container: &Container, config: &InjectorConfig) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    container.command.is_none() && repository(image) == repository(&config.image)
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    match named.rsplit_once(':') {
        // A registry may have a port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Decision, Namespace, Outcome, SkipReason, inject_pod};

    fn inject(pod: &Value, config: &InjectorConfig) -> Result<Outcome, crate::InjectError> {
        inject_pod(pod, &Namespace::enabled("shop"), config)
    }

    /// What a copy of a pod with that image as its sidecar's keeps.
    fn copied(annotations: &Value, image: &str) -> Value {
        let pod = json!({
            "kind": "Pod",
            "metadata": { "name": "web", "annotations": annotations },
            "spec": { "containers": [{ "name": "web" }] },
        });
        let config = InjectorConfig {
            image: image.to_owned(),
            ..InjectorConfig::default()
        };
        let injected = inject(&pod, &config).expect("injected");
        json!({ "kind": "Pod", "metadata": { "name": "copy" }, "spec": injected.document["spec"] })
    }

    #[test]
    fn a_copy_without_annotations_is_injected_already_and_gets_its_label_back() {
        let config = InjectorConfig::default();
        for annotations in [json!({}), json!({ "tulle.dev/native-sidecar": "false" })] {
            for version in ["", ":1.2", "@sha256:0123"] {
                let copy = copied(&annotations, &format!("{}{version}", config.image));
                let outcome = inject(&copy, &config).expect("it is as it was");
                let expected = Decision::Skip(SkipReason::AlreadyInjected);
                assert_eq!(outcome.decision, expected);
                assert_eq!(outcome.document["spec"], copy["spec"], "{version}");
                let labels = json!({ "tulle.dev/proxied": "true" });
                assert_eq!(outcome.document["metadata"]["labels"], labels);
                let again = inject(&outcome.document, &config).expect("it is as it was");
                assert!(again.patch.0.is_empty());
            }
        }
    }

    #[test]
    fn what_only_looks_like_ours_is_refused() {
        type Change = fn(&mut Value);
        let rows: [(&str, Change); 9] = [
            ("another image", |spec| {
                spec["initContainers"][1]["image"] = json!("evil/proxy:1");
            }),
            ("another image of capture", |spec| {
                spec["initContainers"][0]["image"] = json!("evil/proxy:1");
            }),
            ("another program", |spec| {
                spec["initContainers"][1]["command"] = json!(["sleep"]);
            }),
            ("other arguments", |spec| {
                spec["initContainers"][1]["args"] = json!(["await"]);
            }),
            ("no capture", |spec| {
                spec["initContainers"][0]["args"] = json!(["await"]);
            }),
            ("another user", |spec| {
                spec["initContainers"][1]["securityContext"]["runAsUser"] = json!(0);
            }),
            ("it ends before the app", |spec| {
                spec["initContainers"][1]["restartPolicy"] = Value::Null;
            }),
            ("no token", |spec| {
                spec["initContainers"][1]["volumeMounts"] = json!([]);
            }),
            ("no volumes", |spec| spec["volumes"] = json!([])),
        ];
        let config = InjectorConfig::default();
        for (name, change) in rows {
            let mut copy = copied(&json!({}), &config.image);
            change(&mut copy["spec"]);
            let error = inject(&copy, &config).expect_err(name).to_string();
            assert!(
                error.contains("which the injector needs"),
                "{name}: {error}"
            );
        }
    }

    /// A pod as it was injected, which says so.
    fn said(annotations: &Value) -> Value {
        let pod = json!({
            "kind": "Pod",
            "metadata": { "name": "web", "annotations": annotations },
            "spec": { "containers": [{ "name": "web" }] },
        });
        let injected = inject(&pod, &InjectorConfig::default());
        injected.expect("injected").document
    }

    #[test]
    fn a_pod_that_says_so_is_injected_already_only_with_all_parts() {
        type Change = fn(&mut Value);
        fn without(list: &mut Value, name: &str) {
            let list = list.as_array_mut().expect("a list");
            list.retain(|it| it["name"] != name);
        }
        let rows: [(&str, bool, Change); 7] = [
            ("nothing", true, |_| {}),
            ("the label", true, |pod| {
                pod["metadata"]["labels"] = Value::Null;
            }),
            ("the init containers", false, |pod| {
                pod["spec"]["initContainers"] = Value::Null;
            }),
            ("capture", false, |pod| {
                without(&mut pod["spec"]["initContainers"], "tulle-capture");
            }),
            ("the token", false, |pod| {
                without(&mut pod["spec"]["volumes"], "tulle-token");
            }),
            ("the state", false, |pod| {
                without(&mut pod["spec"]["volumes"], "tulle-state");
            }),
            ("what keeps it running", false, |pod| {
                for it in pod["spec"]["initContainers"]
                    .as_array_mut()
                    .expect("a list")
                {
                    it["restartPolicy"] = Value::Null;
                }
                // An ordinary one would be in its place.
                without(&mut pod["spec"]["containers"], "tulle-proxy");
            }),
        ];
        let config = InjectorConfig {
            image: "mirror.example/proxy".to_owned(),
            ..InjectorConfig::default()
        };
        for annotations in [json!({}), json!({ "tulle.dev/native-sidecar": "false" })] {
            for (lacking, whole, change) in rows {
                let mut pod = said(&annotations);
                change(&mut pod);
                let outcome = inject(&pod, &config);
                let decision = outcome.as_ref().ok().map(|it| it.decision);
                let expected = Decision::Skip(SkipReason::AlreadyInjected);
                assert_eq!(
                    decision,
                    whole.then_some(expected),
                    "{lacking}: {outcome:?}"
                );
                if let Err(error) = outcome {
                    let error = error.to_string();
                    assert!(
                        error.contains("which the injector needs"),
                        "{lacking}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_image_is_known_by_its_repository() {
        for (image, expected) in [
            ("r:5000/a/b:1@sha256:0", "r:5000/a/b"),
            ("r:5000/a/b", "r:5000/a/b"),
            ("b:1", "b"),
            ("", ""),
        ] {
            assert_eq!(repository(image), expected, "{image}");
        }
    }
}
