//! LimitRanges that no sidecar meets: the API server refuses each pod of such a namespace that would get one.
//!
//! What is compared is what the API server compares: <https://kubernetes.io/docs/concepts/policy/limit-range/>. Ranges for whole
//! pods depend on the app, too, and are left out.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    LimitRange, LimitRangeItem, Namespace, Pod, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use tulle_injector::{Resources, quantity};
use tulle_runtime::names::{DEFAULT_REVISION, annotations};

use super::annotations::sidecar;
use super::asked;
use super::finding::Findings;
use super::injectors::Injectors;

/// Something that is chosen about sidecars, and what a range wants of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Breach {
    /// The value of an installation, and the annotation of a pod.
    value: &'static str,
    annotation: &'static str,
    wanted: String,
    /// What the range says, and what sidecars have.
    said: String,
}

/// A resource: how it is called, how its amounts are read, and where requests and limits are chosen.
struct Kind {
    name: &'static str,
    read: fn(&str) -> Option<u64>,
    request: (&'static str, &'static str),
    limit: (&'static str, &'static str),
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "cpu",
        read: quantity::cpu,
        request: ("proxy.cpuRequest", annotations::CPU_REQUEST),
        limit: ("proxy.cpuLimit", annotations::CPU_LIMIT),
    },
    Kind {
        name: "memory",
        read: quantity::memory,
        request: ("proxy.memoryRequest", annotations::MEMORY_REQUEST),
        limit: ("proxy.memoryLimit", annotations::MEMORY_LIMIT),
    },
];

type Amounts = BTreeMap<String, Quantity>;

/// What a container asks for and may use of one resource.
#[derive(Clone, Copy)]
struct Has<'a> {
    request: Option<&'a str>,
    limit: Option<&'a str>,
}

/// Looks at meshed namespaces, whose pods with sidecars are known.
pub(super) fn look(
    ranges: &[LimitRange],
    meshed: &[Namespace],
    injected: &[Pod],
    injectors: &Injectors,
    findings: &mut Findings,
) {
    for namespace in meshed {
        let name = namespace.name_any();
        let within = |of: Option<String>| of.as_deref() == Some(&*name);
        let ranges: Vec<_> = ranges.iter().filter(|it| within(it.namespace())).collect();
        let revision = asked::revision(namespace).unwrap_or(DEFAULT_REVISION);
        let Some(resources) = injectors.resources(revision) else {
            continue;
        };
        let breaches: BTreeSet<_> = ranges
            .iter()
            .flat_map(|it| of_injector(it, resources))
            .collect();
        // Where one that is there would be let in today, whoever wrote it has found out.
        let met = |pod: &Pod| {
            ranges
                .iter()
                .all(|it| of_pod(it, pod).is_some_and(|it| it.is_empty()))
        };
        let mut here = injected.iter().filter(|it| within(it.namespace()));
        if !breaches.is_empty() && !here.any(met) {
            tell(&name, &breaches, findings);
        }
    }
}

fn tell(namespace: &str, breaches: &BTreeSet<Breach>, findings: &mut Findings) {
    let joined = |said: fn(&Breach) -> String, between: &str| {
        breaches.iter().map(said).collect::<Vec<_>>().join(between)
    };
    findings.error(
        format!("namespace {namespace}"),
        format!(
            "{}: no pod with a sidecar can be made",
            joined(|it| it.said.clone(), "; ")
        ),
        format!(
            "give it to all sidecars (tulle upgrade {}, with Helm the same values), or to those of a workload by annotations in its \
             pod template ({})",
            joined(|it| format!("--set {}={}", it.value, it.wanted), " "),
            joined(|it| format!("{}: {}", it.annotation, it.wanted), ", "),
        ),
    );
}

/// Where a range refuses what an injector gives sidecars.
fn of_injector(range: &LimitRange, resources: &Resources) -> Vec<Breach> {
    of(range, |kind| match kind {
        "cpu" => Has {
            request: Some(&resources.cpu_request),
            limit: resources.cpu_limit.as_deref(),
        },
        _ => Has {
            request: Some(&resources.memory_request),
            limit: resources.memory_limit.as_deref(),
        },
    })
}

/// Where it refuses what the sidecar of a pod has, if it has one.
fn of_pod(range: &LimitRange, pod: &Pod) -> Option<Vec<Breach>> {
    let ResourceRequirements {
        requests, limits, ..
    } = sidecar(pod)?.resources.as_ref()?;
    Some(of(range, |kind| Has {
        request: amount(requests.as_ref(), kind),
        limit: amount(limits.as_ref(), kind),
    }))
}

fn amount<'a>(amounts: Option<&'a Amounts>, kind: &str) -> Option<&'a str> {
    Some(&amounts?.get(kind)?.0)
}

fn of<'a>(range: &LimitRange, has: impl Fn(&str) -> Has<'a>) -> Vec<Breach> {
    let name = range.name_any();
    let items = range.spec.iter().flat_map(|spec| &spec.limits);
    let mut found = Vec::new();
    for item in items.filter(|item| item.type_ == "Container") {
        for kind in &KINDS {
            found.extend(breaches(&name, item, kind, has(kind.name)));
        }
    }
    found
}

/// What of a resource an item of a range refuses. What cannot be read is let be.
fn breaches(range: &str, item: &LimitRangeItem, kind: &Kind, has: Has<'_>) -> Vec<Breach> {
    let bound = |of: &Option<Amounts>| {
        let text = amount(of.as_ref(), kind.name)?;
        Some((text.to_owned(), (kind.read)(text)?))
    };
    let own = |text: Option<&str>| text.and_then(kind.read);
    // Whoever has no limit is given the range's.
    let limit = has
        .limit
        .or_else(|| amount(item.default.as_ref(), kind.name));
    let (request, most) = (own(has.request), own(limit));
    let about = |verb: &str, bound: &str, has: Option<&str>, (value, annotation)| Breach {
        value,
        annotation,
        wanted: bound.to_owned(),
        said: format!(
            "its LimitRange {range} {verb} {bound} of {} for each container, and sidecars have {}",
            kind.name,
            has.unwrap_or("none")
        ),
    };
    let mut found = Vec::new();
    if let Some((text, least)) = bound(&item.min) {
        if request.is_none_or(|it| it < least) {
            let verb = "requires a request of at least";
            found.push(about(verb, &text, has.request, kind.request));
        }
        if most.is_some_and(|it| it < least) {
            let verb = "requires a limit of at least";
            found.push(about(verb, &text, limit, kind.limit));
        }
    }
    if let Some((text, bound)) = bound(&item.max) {
        if most.is_none_or(|it| it > bound) {
            found.push(about("allows a limit of at most", &text, limit, kind.limit));
        }
        if request.is_some_and(|it| it > bound) {
            let verb = "allows a request of at most";
            found.push(about(verb, &text, has.request, kind.request));
        }
    }
    if found.is_empty() {
        found.extend(ratio(
            range,
            item,
            kind,
            (has.request, request),
            (limit, most),
        ));
    }
    found
}

/// Whether the limit is more times the request than a range allows.
fn ratio(
    range: &str,
    item: &LimitRangeItem,
    kind: &Kind,
    (asks, request): (Option<&str>, Option<u64>),
    (may, limit): (Option<&str>, Option<u64>),
) -> Option<Breach> {
    let times = amount(item.max_limit_request_ratio.as_ref(), kind.name)?;
    // In thousandths, as processors are.
    let most = u128::from(quantity::cpu(times)?);
    let (request, limit) = (u128::from(request?), u128::from(limit?));
    let (value, annotation) = kind.request;
    (limit * 1_000 > request * most).then(|| Breach {
        said: format!(
            "its LimitRange {range} allows a limit of {} that is at most {times} times the request, and sidecars have {} and {}",
            kind.name,
            may.unwrap_or_default(),
            asks.unwrap_or_default()
        ),
        value,
        annotation,
        wanted: may.unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(item: &Value) -> LimitRange {
        serde_json::from_value(json!({
            "metadata": { "name": "r", "namespace": "shop" }, "spec": { "limits": [item] },
        }))
        .expect("a LimitRange")
    }

    #[test]
    fn sidecars_are_compared_with_each_bound_of_a_range() {
        for (field, amounts, values) in [
            ("min", json!({ "cpu": "5m", "memory": "8Mi" }), &[][..]),
            ("min", json!({ "cpu": "50m" }), &["proxy.cpuRequest=50m"]),
            (
                "min",
                json!({ "cpu": "50m", "memory": "512Mi" }),
                &[
                    "proxy.cpuRequest=50m",
                    "proxy.memoryRequest=512Mi",
                    "proxy.memoryLimit=512Mi",
                ],
            ),
            ("max", json!({ "memory": "1Gi" }), &[]),
            (
                "max",
                json!({ "memory": "128Mi" }),
                &["proxy.memoryLimit=128Mi"],
            ),
            ("max", json!({ "cpu": "1" }), &["proxy.cpuLimit=1"]),
            ("maxLimitRequestRatio", json!({ "memory": "16" }), &[]),
            (
                "maxLimitRequestRatio",
                json!({ "memory": "4" }),
                &["proxy.memoryRequest=256Mi"],
            ),
            ("maxLimitRequestRatio", json!({ "cpu": "1" }), &[]),
            ("min", json!({ "cpu": "whatever" }), &[]),
            ("min", json!({ "ephemeral-storage": "1Gi" }), &[]),
        ] {
            let item = json!({ "type": "Container", field: amounts });
            let breaches = of_injector(&range(&item), &Resources::default());
            let told: Vec<_> = breaches
                .iter()
                .map(|it| format!("{}={}", it.value, it.wanted))
                .collect();
            assert_eq!(told, values, "{item}: {breaches:?}");
        }
    }

    #[test]
    fn a_limit_is_the_ranges_where_sidecars_have_none_and_pods_are_let_be() {
        let found = |item: &Value| of_injector(&range(item), &Resources::default());
        let max = |amount: &str| {
            let cpu = json!({ "cpu": amount });
            json!({ "type": "Container", "max": cpu, "default": cpu })
        };
        assert!(found(&max("1")).is_empty());
        let told: Vec<_> = found(&max("5m")).into_iter().map(|it| it.value).collect();
        assert_eq!(told, ["proxy.cpuRequest"]);
        let pod = json!({ "type": "Pod", "min": { "cpu": "50m" } });
        assert!(found(&pod).is_empty());
    }

    #[test]
    fn a_namespace_is_told_until_one_of_its_sidecars_meets_its_ranges() {
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": "shop" } })).expect("a namespace");
        let deployment = |args: &[&str]| {
            let container = json!({ "name": "x", "args": args });
            let template = json!({ "spec": { "containers": [container] } });
            serde_json::from_value(json!({
                "metadata": { "name": "tulle-injector" }, "spec": { "selector": {}, "template": template },
            }))
            .expect("a Deployment")
        };
        let pod = |namespace: &str, cpu: &str| -> Pod {
            let requests = json!({ "cpu": cpu, "memory": "16Mi" });
            let container = json!({ "name": "tulle-proxy", "resources": { "requests": requests } });
            serde_json::from_value(json!({
                "metadata": { "name": "one", "namespace": namespace },
                "spec": { "initContainers": [container], "containers": [] },
            }))
            .expect("a pod")
        };
        let ranges = [range(
            &json!({ "type": "Container", "min": { "cpu": "50m" } }),
        )];
        for (name, args, pods, told) in [
            ("nobody", &["injector"][..], vec![], 1),
            ("all", &["--proxy-cpu-request=60m"], vec![], 0),
            ("old pods", &["injector"], vec![pod("shop", "10m")], 1),
            (
                "a workload",
                &["injector"],
                vec![pod("shop", "10m"), pod("shop", "50m")],
                0,
            ),
            ("elsewhere", &["injector"], vec![pod("other", "50m")], 1),
        ] {
            let mut findings = Findings::default();
            let injectors = Injectors::of(&[deployment(args)]);
            look(
                &ranges,
                std::slice::from_ref(&namespace),
                &pods,
                &injectors,
                &mut findings,
            );
            assert_eq!(findings.all.len(), told, "{name}: {findings:?}");
            for found in &findings.all {
                assert!(found.state.contains("at least 50m of cpu"), "{found:?}");
                let remedy = found.remedy.as_deref().expect("a remedy");
                for words in [
                    "--set proxy.cpuRequest=50m",
                    "tulle.dev/proxy-cpu-request: 50m",
                ] {
                    assert!(remedy.contains(words), "{remedy}");
                }
            }
        }
    }
}
