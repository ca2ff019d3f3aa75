//! What can be chosen about an installation: the values of the Helm chart, whoever renders them.
//!
//! The chart's own files hold the defaults and the profiles, so that there is one of each. These types say what the values may
//! be, and the chart's schema is generated from them.

mod quantity;
mod shapes;

use std::collections::BTreeMap;

use clap::Parser as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tulle_injector::quantity::{cpu, memory};

use super::manifests;
use crate::args::Cli;
use quantity::Quantity;
use shapes::{PodSelector, Toleration};

/// Defaults of the chart.
const DEFAULTS: &str = include_str!("../../../../deploy/charts/tulle/values.yaml");
const HA: &str = include_str!("../../../../deploy/charts/tulle/values-ha.yaml");
const DEV: &str = include_str!("../../../../deploy/charts/tulle/values-dev.yaml");

/// What the programs read, as far as the chart's schema can say it.
const DURATION: &str = "^[0-9]+(ms|s|m|h)$";
const DOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const REGISTRY: &str = r"^[-A-Za-z0-9._:\[\]]+(/[-A-Za-z0-9._:\[\]]+)*$";
const TAG: &str = "^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$";
const NAME: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$";
const LABEL: &str =
    "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";

/// Sets of values for usual cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Two replicas of each part
    #[default]
    Default,
    /// Three replicas, never two on one node, more under load
    Ha,
    /// One replica of each part, as small as it works
    Dev,
}

impl Profile {
    fn text(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Ha => Some(HA),
            Self::Dev => Some(DEV),
        }
    }
}

/// Values of an installation of Tulle.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Values {
    /// Which control plane this is.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$"))]
    pub(crate) revision: String,
    /// Where images come from.
    pub(crate) image: Image,
    /// First part of every identity.
    #[schemars(regex(pattern = r"^[a-z0-9._-]+$"), length(min = 1, max = 255))]
    pub(crate) trust_domain: String,
    /// DNS domain of the cluster.
    #[schemars(regex(pattern = DOMAIN), length(max = 100))]
    pub(crate) cluster_domain: String,
    /// The control plane.
    pub(crate) control: Control,
    /// The injector.
    pub(crate) injector: Injector,
    /// Sidecars.
    pub(crate) proxy: Proxy,
    /// Who may reach the control plane.
    pub(crate) network_policy: Switch,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Image {
    /// Registry and path of the images `tulle` and `tulle-proxy`.
    #[schemars(regex(pattern = REGISTRY))]
    pub(crate) registry: String,
    /// Tag; empty for the version of the chart.
    #[schemars(regex(pattern = TAG))]
    pub(crate) tag: String,
    /// When nodes fetch them.
    pub(crate) pull_policy: PullPolicy,
    /// Names of Secrets to fetch them with.
    #[schemars(inner(regex(pattern = NAME), length(min = 1)))]
    pub(crate) pull_secrets: Vec<String>,
}

/// When nodes fetch an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The control plane.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Control {
    /// Log filter.
    pub(crate) log: String,
    /// How long certificates of workloads live.
    #[schemars(regex(pattern = DURATION))]
    pub(crate) leaf_ttl: String,
    /// How long a new root is announced before it signs.
    #[schemars(regex(pattern = DURATION))]
    pub(crate) root_propagation: String,
    /// Secret whose CA signs; empty for a root of its own.
    #[schemars(regex(pattern = NAME))]
    pub(crate) ca_issuer_secret: String,
    /// How it runs.
    #[serde(flatten)]
    pub(crate) deployment: Deployment,
}

/// The injector.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Injector {
    /// Log filter.
    pub(crate) log: String,
    /// What becomes of a pod while no injector answers.
    pub(crate) failure_policy: FailurePolicy,
    /// How long the API server waits for an answer.
    #[schemars(range(min = 1, max = 30))]
    pub(crate) timeout_seconds: u32,
    /// Label selectors of pods that get a sidecar also where their namespace asks for none.
    #[schemars(with = "Vec<PodSelector>")]
    pub(crate) always_inject: Vec<Map<String, Value>>,
    /// Label selectors of pods that get none unless their own label asks for it.
    #[schemars(with = "Vec<PodSelector>")]
    pub(crate) never_inject: Vec<Map<String, Value>>,
    /// How it runs.
    #[serde(flatten)]
    pub(crate) deployment: Deployment,
}

/// What becomes of a pod while no injector answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum FailurePolicy {
    /// It is not created.
    Fail,
    /// It is created without a sidecar.
    Ignore,
}

/// How a part runs.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Deployment {
    /// Pods.
    #[schemars(range(min = 1))]
    pub(crate) replicas: u32,
    /// More arguments.
    pub(crate) extra_args: Vec<String>,
    /// Requests and limits.
    pub(crate) resources: Resources,
    /// Whether its pods are on different nodes.
    pub(crate) anti_affinity: AntiAffinity,
    /// Whether evictions leave replicas in place until others are there.
    pub(crate) disruption_budget: bool,
    /// More pods under load.
    pub(crate) autoscaling: Autoscaling,
    /// Priority class; empty for none.
    #[schemars(regex(pattern = NAME))]
    pub(crate) priority_class_name: String,
    /// Labels of the nodes that it may run on.
    pub(crate) node_selector: BTreeMap<String, String>,
    /// Taints that it tolerates.
    #[schemars(with = "Vec<Toleration>")]
    pub(crate) tolerations: Vec<Map<String, Value>>,
}

/// What a container asks for, and what it may have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    /// What a node must have left for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<BTreeMap<String, Quantity>>,
    /// What it cannot have more of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<BTreeMap<String, Quantity>>,
}

/// Whether pods of one part are on different nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AntiAffinity {
    /// Where that is possible.
    Preferred,
    /// Always; a pod without a node of its own waits.
    Required,
    /// It does not matter.
    None,
}

/// More pods under load.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Autoscaling {
    /// Whether there is any.
    pub(crate) enabled: bool,
    /// Fewest pods.
    #[schemars(range(min = 1))]
    pub(crate) min_replicas: u32,
    /// Most pods.
    #[schemars(range(min = 1))]
    pub(crate) max_replicas: u32,
    /// Average processor time to aim at, in percent of what is requested.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) cpu_percent: u32,
}

/// Sidecars.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Proxy {
    /// Log filter.
    pub(crate) log: String,
    /// Whether requests are logged.
    pub(crate) access_log: AccessLog,
    /// Init containers with restartPolicy Always.
    pub(crate) native_sidecar: bool,
    /// Whether Prometheus finds a sidecar's metrics, and those of its app behind them.
    pub(crate) merge_metrics: bool,
    /// Names of Secrets that pods get to fetch a sidecar's image with.
    #[schemars(inner(regex(pattern = NAME), length(min = 1)))]
    pub(crate) image_pull_secrets: Vec<String>,
    /// Requested processor time.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(regex(pattern = quantity::PATTERN), extend("type" = ["string", "number"], "minimum" = 0))]
    pub(crate) cpu_request: String,
    /// Limit of processor time; empty for none.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(regex(pattern = quantity::OPTIONAL), extend("type" = ["string", "number"], "minimum" = 0))]
    pub(crate) cpu_limit: String,
    /// Requested memory.
    #[schemars(regex(pattern = quantity::PATTERN))]
    pub(crate) memory_request: String,
    /// Limit of memory, and of a sidecar's own guard.
    #[schemars(regex(pattern = quantity::PATTERN))]
    pub(crate) memory_limit: String,
}

/// Whether requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AccessLog {
    /// As JSON, on standard output.
    Json,
    /// Not at all.
    Off,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Switch {
    /// Whether it is.
    pub(crate) enabled: bool,
}

/// Values that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{origin}: {problem}")]
pub(crate) struct BadValues {
    /// Where they come from: a file, or `--set`.
    origin: String,
    problem: String,
}

/// Values on their way: the defaults, and what is laid over them.
#[derive(Debug, Clone)]
pub(crate) struct Layered {
    values: Value,
    /// What does not hold of them together, by the layer that it came with: a later one may put it right.
    wrong: Option<BadValues>,
}

impl Layered {
    /// The values of a profile.
    pub(crate) fn new(profile: Profile) -> Self {
        let read = |text| yaml(text).expect("the chart's own files are YAML");
        let mut values = read(DEFAULTS);
        if let Some(text) = profile.text() {
            merge(&mut values, read(text));
        }
        let wrong = None;
        Self { values, wrong }
    }

    /// Lays the values of a file over these.
    ///
    /// # Errors
    /// If the text is no YAML, or has a value that there is not.
    pub(crate) fn file(self, origin: &str, text: &str) -> Result<Self, BadValues> {
        let values = yaml(text).map_err(|problem| BadValues {
            origin: origin.to_owned(),
            problem,
        })?;
        self.over(origin, values)
    }

    /// Lays one value over these: `control.replicas=3`. What follows the `=` is read as YAML.
    ///
    /// # Errors
    /// If there is no `=` or no such value.
    pub(crate) fn set(self, assignment: &str) -> Result<Self, BadValues> {
        let origin = format!("--set {assignment}");
        let bad = |problem: &str| BadValues {
            origin: origin.clone(),
            problem: problem.to_owned(),
        };
        let (path, text) = assignment
            .split_once('=')
            .ok_or_else(|| bad("write PATH=VALUE, such as control.replicas=3"))?;
        let value: Value = match text {
            "" => Value::String(String::new()),
            text => yaml(text).map_err(|problem| bad(&problem))?,
        };
        // Where a string is wanted a number is meant as one: a tag such as 1.20. `null` takes away, and is no word.
        let as_text = Some(Value::String(text.to_owned())).filter(|_| !value.is_null());
        let steps = steps(path);
        let nested = |value: Value| {
            steps.iter().rev().fold(value, |inner, step| {
                Value::Object(Map::from_iter([(step.clone(), inner)]))
            })
        };
        let typed = self.clone().over(&origin, nested(value));
        typed.or_else(|error| match as_text {
            Some(text) => self.over(&origin, nested(text)).map_err(|_| error),
            None => Err(error),
        })
    }

    fn over(mut self, origin: &str, values: Value) -> Result<Self, BadValues> {
        let bad = |problem: String| BadValues {
            origin: origin.to_owned(),
            problem,
        };
        merge(&mut self.values, values);
        let read = Values::deserialize(&self.values).map_err(|error| bad(error.to_string()))?;
        let before = self.wrong.take();
        self.wrong = read.check().err().map(|problem| {
            let before = before.filter(|it| it.problem == problem);
            before.unwrap_or_else(|| bad(problem))
        });
        Ok(self)
    }

    /// All of them together.
    ///
    /// # Errors
    /// If they cannot be used together.
    pub(crate) fn values(self) -> Result<Values, BadValues> {
        match self.wrong {
            Some(wrong) => Err(wrong),
            None => Ok(Values::deserialize(self.values).expect("each layer was read")),
        }
    }
}

impl Values {
    /// What the types do not say.
    fn check(&self) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let revision = &self.revision;
        if revision.is_empty()
            || revision.len() > 32
            || !revision.bytes().all(plain)
            || revision.starts_with('-')
            || revision.ends_with('-')
        {
            return Err(format!(
                "revision {revision:?} is no name: use at most 32 lower-case letters, digits and `-` between them"
            ));
        }
        for (name, part) in self.parts() {
            let Autoscaling {
                min_replicas,
                max_replicas,
                ..
            } = part.autoscaling;
            if part.replicas == 0 || min_replicas == 0 {
                return Err(format!("{name} has no replicas: give it 1 or more"));
            }
            if min_replicas > max_replicas {
                return Err(format!(
                    "{name}.autoscaling.minReplicas {min_replicas} is more than maxReplicas {max_replicas}: make it less"
                ));
            }
        }
        let timeout = self.injector.timeout_seconds;
        if !(1..=30).contains(&timeout) {
            return Err(format!(
                "injector.timeoutSeconds is {timeout}: Kubernetes takes 1 to 30"
            ));
        }
        self.image.check()?;
        self.proxy.check()?;
        self.names()?;
        for (name, part) in self.parts() {
            for toleration in &part.tolerations {
                Toleration::deserialize(Value::Object(toleration.clone()))
                    .map_err(|error| format!("{name}.tolerations: {error}"))?;
            }
        }
        for (name, selectors) in [
            ("alwaysInject", &self.injector.always_inject),
            ("neverInject", &self.injector.never_inject),
        ] {
            for selector in selectors {
                PodSelector::deserialize(Value::Object(selector.clone()))
                    .map_err(|error| format!("injector.{name}: {error}"))?;
            }
        }
        self.starts()
    }

    /// The parts, by the names of their values.
    fn parts(&self) -> [(&'static str, &Deployment); 2] {
        [
            ("control", &self.control.deployment),
            ("injector", &self.injector.deployment),
        ]
    }

    /// Whether what names other objects can be a name.
    fn names(&self) -> Result<(), String> {
        let one = |name: &str| !name.is_empty();
        let issuer = &self.control.ca_issuer_secret;
        let issuer = Some(("control.caIssuerSecret", issuer)).filter(|(_, it)| one(it));
        let classes = self
            .parts()
            .map(|(part, it)| (part, &it.priority_class_name));
        let classes = classes.into_iter().filter(|(_, it)| one(it));
        let images = self.image.pull_secrets.iter();
        let sidecars = self.proxy.image_pull_secrets.iter();
        let all = issuer.into_iter().map(|(of, it)| (of.to_owned(), it));
        let all = all.chain(classes.map(|(part, it)| (format!("{part}.priorityClassName"), it)));
        let all = all.chain(images.map(|it| ("image.pullSecrets".to_owned(), it)));
        let mut all = all.chain(sidecars.map(|it| ("proxy.imagePullSecrets".to_owned(), it)));
        match all.find(|(_, name)| !is_name(name)) {
            Some((of, name)) => Err(format!(
                "{of}: {name:?} is no name of an object: use lower-case letters, digits, and `-` and `.` between them"
            )),
            None => Ok(()),
        }
    }

    /// Whether the programs take what they would be started with: one that does not start is found out late.
    fn starts(&self) -> Result<(), String> {
        for arguments in manifests::arguments(self) {
            let program = arguments.first().cloned().unwrap_or_default();
            let words = std::iter::once("tulle".to_owned()).chain(arguments);
            if let Err(error) = Cli::try_parse_from(words) {
                let said = error.to_string();
                let said = said.lines().take_while(|line| !line.is_empty());
                let said: Vec<_> = said.map(str::trim).collect();
                let said = said.join(" ");
                let said = said.strip_prefix("error: ").unwrap_or(&said);
                return Err(format!("tulle {program} would not start: {said}"));
            }
        }
        Ok(())
    }
}

impl Image {
    /// Whether they can be parts of a reference: <https://github.com/distribution/reference/blob/main/reference.go>.
    fn check(&self) -> Result<(), String> {
        let (registry, tag) = (&self.registry, &self.tag);
        let within = |byte: u8, more: &[u8]| byte.is_ascii_alphanumeric() || more.contains(&byte);
        let part = |part: &str| !part.is_empty() && part.bytes().all(|it| within(it, b"-._:[]"));
        if !registry.split('/').all(part) {
            return Err(format!(
                "image.registry {registry:?} is no registry and path of images: write one such as ghcr.io/tulle-mesh"
            ));
        }
        if tag.len() > 128
            || tag.starts_with(['-', '.'])
            || !tag.bytes().all(|it| within(it, b"-._"))
        {
            return Err(format!(
                "image.tag {tag:?} is no tag: use at most 128 letters, digits, `_`, and `-` and `.` behind the first"
            ));
        }
        Ok(())
    }
}

impl Proxy {
    /// Whether sidecars may use what they ask for. They would ask for less, and nobody would hear of it.
    fn check(&self) -> Result<(), String> {
        type Read = fn(&str) -> Option<u64>;
        for (name, read, request, limit) in [
            ("cpu", cpu as Read, &self.cpu_request, &self.cpu_limit),
            ("memory", memory, &self.memory_request, &self.memory_limit),
        ] {
            let both = read(request).zip(read(limit));
            if both.is_some_and(|(request, limit)| request > limit) {
                return Err(format!(
                    "proxy.{name}Request {request} is more than proxy.{name}Limit {limit}: make it less"
                ));
            }
        }
        Ok(())
    }
}

/// Whether an object can have this name: <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>.
fn is_name(text: &str) -> bool {
    let alone = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| alone(*byte));
    let bytes = text.as_bytes();
    let within = |byte: &u8| alone(*byte) || matches!(byte, b'-' | b'.');
    ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(within) && bytes.len() <= 253
}

/// The steps of a path, which are divided by dots; one with a backslash before it belongs to a step.
fn steps(path: &str) -> Vec<String> {
    let mut steps = vec![String::new()];
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        let last = steps.last_mut().expect("there is one from the beginning");
        match letter {
            '\\' => last.extend(letters.next()),
            '.' => steps.push(String::new()),
            letter => last.push(letter),
        }
    }
    steps
}

/// YAML in which `off` and `no` are words, as on Helm's command line.
fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

/// Lays values over others, as Helm does: objects are merged, everything else is replaced, and `null` takes away.
fn merge(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                if value.is_null() {
                    below.remove(&key);
                } else {
                    merge(below.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests;
