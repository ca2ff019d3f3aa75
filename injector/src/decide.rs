//! Whether a pod gets a sidecar. Pure: facts in, decision with its reason out; the first row that matches wins.

mod injected;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_runtime::names::{DEFAULT_REVISION, SYSTEM_NAMESPACES, annotations, labels};

use crate::{InjectError, InjectorConfig, Selector, Warning, WarningReason};

/// Annotation that marks the API server's image of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Node label by which pods choose an operating system.
const OS_LABEL: &str = "kubernetes.io/os";
/// Namespace label that names the Pod Security Standard which pods must meet.
pub(crate) const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";

/// The namespace that a pod is created in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Namespace {
    /// A namespace whose label asks for injection.
    pub fn enabled(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            labels: BTreeMap::from([(labels::INJECT.to_owned(), "enabled".to_owned())]),
        }
    }

    /// The Pod Security Standard that it enforces, if that forbids capture the capability NET_ADMIN: `baseline` allows
    /// none but those that a container runtime gives anyway, `restricted` fewer.
    /// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>
    #[must_use]
    pub fn forbids_capture(&self) -> Option<&str> {
        let enforced = self.label(POD_SECURITY_LABEL);
        enforced.filter(|standard| ["baseline", "restricted"].contains(standard))
    }

    /// What to tell whoever has a pod injected that the API server may then refuse.
    pub(crate) fn warning(&self) -> Option<Warning> {
        let standard = self.forbids_capture()?;
        let message = format!(
            "namespace {} enforces the Pod Security Standard {standard}, which forbids capture's NET_ADMIN: label it \
             {POD_SECURITY_LABEL}=privileged, or the pod {}=disabled",
            self.name,
            labels::INJECT,
        );
        Some(Warning::new(WarningReason::PodSecurity, message))
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// Whether a pod gets a sidecar, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It gets one.
    Inject(InjectReason),
    /// It is left as it is.
    Skip(SkipReason),
}

tulle_runtime::named! {
    /// Why a pod gets a sidecar.
    pub enum InjectReason {
        /// Its own label asks for it.
        PodLabel = "pod_label",
        /// Its own label names the revision.
        PodRevision = "pod_revision",
        /// The operator wants it for every pod with such labels.
        AlwaysSelected = "always_selected",
        /// The label of its namespace asks for it.
        NamespaceLabel = "namespace_label",
        /// A label of its namespace names the revision.
        NamespaceRevision = "namespace_revision",
    }
}

tulle_runtime::named! {
    /// Why a pod is left as it is.
    pub enum SkipReason {
        /// The document holds no pod.
        NotAWorkload = "not_a_workload",
        /// The pod exists already, and is changed or deleted.
        NotCreated = "not_created",
        /// Only a part of the pod is asked about, such as its ephemeral containers.
        Subresource = "subresource",
        /// The pod already has a sidecar of ours.
        AlreadyInjected = "already_injected",
        /// The pod shares the network of its node.
        HostNetwork = "host_network",
        /// The namespace belongs to Kubernetes or to the control plane.
        SystemNamespace = "system_namespace",
        /// The pod mirrors a static pod, which the API server cannot change.
        MirrorPod = "mirror_pod",
        /// The pod runs on Windows.
        Windows = "windows",
        /// The pod is for the injector of another revision.
        OtherRevision = "other_revision",
        /// The pod's label opts out.
        PodLabel = "pod_label",
        /// The pod's annotation opts out.
        PodAnnotation = "pod_annotation",
        /// The operator wants none for pods with such labels.
        NeverSelected = "never_selected",
        /// Neither the namespace nor the pod asks for a sidecar.
        NotSelected = "not_selected",
    }
}

impl Decision {
    /// Its name in metrics, and that of its reason.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Inject(reason) => ("injected", reason.name()),
            Self::Skip(reason) => ("skipped", reason.name()),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inject(reason) => match reason {
                InjectReason::PodLabel => "injected: the pod is labelled tulle.dev/inject=enabled",
                InjectReason::PodRevision => "injected: the pod is labelled tulle.dev/rev",
                InjectReason::AlwaysSelected => "injected: a selector of the injector always injects such pods",
                InjectReason::NamespaceLabel => "injected: the namespace is labelled tulle.dev/inject=enabled",
                InjectReason::NamespaceRevision => "injected: the namespace is labelled tulle.dev/rev",
            },
            Self::Skip(reason) => match reason {
                SkipReason::NotAWorkload => "skipped: not a pod or a workload",
                SkipReason::NotCreated => "skipped: pods are injected only when they are created",
                SkipReason::Subresource => "skipped: a subresource of a pod that exists is left as it is",
                SkipReason::AlreadyInjected => "skipped: it already has a sidecar",
                SkipReason::HostNetwork => "skipped: hostNetwork pods share the network of their node",
                SkipReason::SystemNamespace => "skipped: pods of system namespaces are never injected",
                SkipReason::MirrorPod => "skipped: mirror pods of static pods cannot be changed",
                SkipReason::Windows => "skipped: Windows pods are not supported",
                SkipReason::OtherRevision => "skipped: another revision's injector is for it (tulle.dev/rev)",
                SkipReason::PodLabel => "skipped: the pod is labelled tulle.dev/inject=disabled",
                SkipReason::PodAnnotation => "skipped: the pod is annotated tulle.dev/inject=disabled",
                SkipReason::NeverSelected => "skipped: a selector of the injector never injects such pods",
                SkipReason::NotSelected => {
                    "skipped: neither the namespace nor the pod is labelled tulle.dev/inject=enabled"
                }
            },
        })
    }
}

/// Decides about one pod. An error means that the pod's own label cannot be understood.
pub(crate) fn decide(
    meta: &ObjectMeta,
    spec: &PodSpec,
    namespace: &Namespace,
    config: &InjectorConfig,
) -> Result<Decision, InjectError> {
    let skip = |reason| Ok(Decision::Skip(reason));
    if let Some(reason) = never(meta, spec, namespace, config) {
        return skip(reason);
    }
    let (of_pod, of_namespace) = (revision_of_pod(meta), namespace.label(labels::REVISION));
    let of_namespace = of_namespace.filter(|revision| !revision.is_empty());
    let revision = of_pod.or(of_namespace).unwrap_or(DEFAULT_REVISION);
    if revision != config.revision.as_str() {
        return skip(SkipReason::OtherRevision);
    }
    match label(meta, labels::INJECT) {
        Some("enabled") => return Ok(Decision::Inject(InjectReason::PodLabel)),
        Some("disabled") => return skip(SkipReason::PodLabel),
        Some(other) => {
            return Err(InjectError::Label {
                name: labels::INJECT,
                value: other.to_owned(),
            });
        }
        None => {}
    }
    let matches = |selector: &Selector| selector.matches(meta.labels.as_ref());
    if config.never.iter().any(matches) {
        return skip(SkipReason::NeverSelected);
    }
    let reason = if of_pod.is_some() {
        InjectReason::PodRevision
    } else if config.always.iter().any(matches) {
        InjectReason::AlwaysSelected
    } else {
        match (namespace.label(labels::INJECT), of_namespace) {
            (Some("enabled"), _) => InjectReason::NamespaceLabel,
            // A namespace may name the revision of those pods alone that ask for a sidecar.
            (None, Some(_)) => InjectReason::NamespaceRevision,
            _ => return skip(SkipReason::NotSelected),
        }
    };
    match annotation(meta, labels::INJECT) {
        None | Some("enabled") => Ok(Decision::Inject(reason)),
        Some("disabled") => skip(SkipReason::PodAnnotation),
        Some(other) => Err(InjectError::Annotation {
            name: labels::INJECT,
            value: other.to_owned(),
            problem: "it is neither `enabled` nor `disabled`".to_owned(),
            remedy: "write `disabled` to opt out, or remove the annotation",
        }),
    }
}

/// Why a pod gets no sidecar, whoever asks for one.
fn never(
    meta: &ObjectMeta,
    spec: &PodSpec,
    namespace: &Namespace,
    config: &InjectorConfig,
) -> Option<SkipReason> {
    if spec.host_network == Some(true) {
        Some(SkipReason::HostNetwork)
    } else if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) {
        Some(SkipReason::SystemNamespace)
    } else if annotation(meta, MIRROR_ANNOTATION).is_some() {
        Some(SkipReason::MirrorPod)
    } else if runs_on_windows(spec) {
        Some(SkipReason::Windows)
    } else if already_injected(meta, spec, config) {
        Some(SkipReason::AlreadyInjected)
    } else {
        None
    }
}

/// The revision that the pod's own label names; an empty one names none.
pub(crate) fn revision_of_pod(meta: &ObjectMeta) -> Option<&str> {
    label(meta, labels::REVISION).filter(|revision| !revision.is_empty())
}

fn runs_on_windows(spec: &PodSpec) -> bool {
    let named = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    let selected = spec
        .node_selector
        .as_ref()
        .and_then(|selector| selector.get(OS_LABEL));
    named || selected.is_some_and(|os| os == "windows")
}

/// A copied status annotation alone is not a sidecar, and neither is a part of one: an app would run half-injected. Where the
/// annotation was left behind, as by `kubectl debug --copy-to`, what is there has to be ours.
fn already_injected(meta: &ObjectMeta, spec: &PodSpec, config: &InjectorConfig) -> bool {
    let said = annotation(meta, annotations::STATUS).is_some();
    (said && injected::is_whole(spec)) || injected::is_ours(spec, config)
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests;
