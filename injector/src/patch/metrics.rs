//! Where Prometheus finds the metrics of a pod: at the sidecar, which is told where those of the app are.
//!
//! Prometheus reads annotations by convention, not by an API, and knows names only with every odd character replaced, so all
//! spellings of one count. What is said in a way that cannot be understood stays as it is, with a warning: no pod is kept out
//! for it, and whoever understood it before still does.
//! <https://prometheus.io/docs/prometheus/latest/configuration/configuration/#kubernetes_sd_config>

use std::collections::BTreeMap;
use std::fmt::Write as _;

use json_patch::PatchError;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tulle_runtime::names::{METRICS_PATH, annotations as names, ports};

use super::Pod;
use super::editor::Editor;
use super::guard;
use crate::options::Options;

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";
/// With a name behind it: what is asked for.
const PARAMETER: &str = "prometheus_io_param_";
/// What cannot stand in a path as it is. A question mark can: queries are written there, too.
const PATH_CHARACTERS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// A longer path no app has.
const LONGEST: usize = 4096;

/// That Prometheus is to ask the sidecar.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scrape {
    /// Where the app's metrics are, if it has any.
    app: Option<App>,
    /// Annotations that say the same as ours by another spelling.
    others: Vec<String>,
    /// Whether the pod names a scheme.
    scheme: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct App {
    port: u16,
    path: String,
    https: bool,
}

/// What is to be done; nothing where the pod wants none, and an error is a warning to its author.
pub(crate) fn plan(pod: &Pod<'_>, options: &Options) -> Result<Option<Scrape>, String> {
    if !options.merge_metrics {
        return Ok(None);
    }
    let none = BTreeMap::new();
    let said = Said(pod.meta.annotations.as_ref().unwrap_or(&none));
    let scrape = said.value(SCRAPE);
    match scrape {
        None | Some("true") => {}
        Some("false") => return Ok(None),
        Some(other) => return Err(left(SCRAPE, other, "it is neither `true` nor `false`")),
    }
    let https = match said.value(SCHEME) {
        None | Some("http") => false,
        Some("https") => true,
        Some(other) => return Err(left(SCHEME, other, "it is neither `http` nor `https`")),
    };
    let port = said.value(PORT);
    let path = said.value(PATH);
    let app = if scrape.or(port).or(path).is_some() {
        let port = port.map_or_else(|| only_port(pod.spec), port_of)?;
        let path = path_of(path.unwrap_or("/metrics"), &said)?;
        // It was injected before, or copied from a pod that was: what it said then is not known.
        (port != ports::METRICS).then_some(App { port, path, https })
    } else {
        None
    };
    let ours = [SCRAPE, PORT, PATH, SCHEME];
    let others = ours.iter().flat_map(|name| said.spellings(name));
    let others = others.map(|(name, _)| name.to_owned());
    Ok(Some(Scrape {
        app,
        others: others
            .filter(|name| !ours.contains(&name.as_str()))
            .collect(),
        scheme: said.value(SCHEME).is_some(),
    }))
}

impl Scrape {
    /// Where the app's metrics are, as the sidecar reads it.
    pub(crate) fn to_variable(&self) -> Option<String> {
        let App { port, path, https } = self.app.as_ref()?;
        let scheme = if *https { "https" } else { "http" };
        Some(json!({ "port": port, "path": path, "scheme": scheme }).to_string())
    }

    pub(crate) fn write(&self, editor: &mut Editor) -> Result<(), PatchError> {
        let at = ["metadata", "annotations"];
        for name in &self.others {
            editor.remove(&[at[0], at[1], name])?;
        }
        editor.set(&at, SCRAPE, json!("true"))?;
        editor.set(&at, PORT, json!(ports::METRICS.to_string()))?;
        editor.set(&at, PATH, json!(METRICS_PATH))?;
        if self.scheme {
            editor.set(&at, SCHEME, json!("http"))?;
        }
        Ok(())
    }
}

/// Annotations of a pod, by the names that Prometheus has for them.
struct Said<'a>(&'a BTreeMap<String, String>);

impl<'a> Said<'a> {
    /// All that mean the same; the usual spelling first.
    fn spellings(&self, name: &str) -> Vec<(&'a str, &'a str)> {
        let all = self
            .0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let wanted = label(name);
        let mut spellings: Vec<_> = all.filter(|(key, _)| label(key) == wanted).collect();
        spellings.sort_by_key(|(key, _)| *key != name);
        spellings
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.spellings(name).first().map(|(_, value)| *value)
    }

    /// What is asked for beside the path.
    fn parameters(&self) -> BTreeMap<String, &'a str> {
        let named = |key: &str| Some(label(key).strip_prefix(PARAMETER)?.to_owned());
        let all = self.0.iter();
        all.filter_map(|(key, value)| Some((named(key)?, value.as_str())))
            .collect()
    }
}

/// The name that Prometheus has for an annotation.
fn label(name: &str) -> String {
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(known).collect()
}

fn port_of(said: &str) -> Result<u16, String> {
    let port = said.parse::<u16>().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| left(PORT, said, "it is not a port"))?;
    if guard::PORTS.contains(&port) && port != ports::METRICS {
        return Err(left(PORT, said, "it is a port of the sidecar"));
    }
    Ok(port)
}

/// Without a port Prometheus asks every one that the pod declares.
fn only_port(spec: &PodSpec) -> Result<u16, String> {
    let goes_on = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().filter(goes_on);
    let declared = init
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let tcp = declared.filter(|port| {
        port.protocol
            .as_deref()
            .is_none_or(|protocol| protocol == "TCP")
    });
    let mut ports: Vec<_> = tcp
        .filter_map(|port| u16::try_from(port.container_port).ok())
        .collect();
    ports.dedup();
    match ports[..] {
        [port] if port != 0 => Ok(port),
        _ => Err(format!(
            "the pod is to be scraped, but the sidecar does not know on which of its {} ports, so Prometheus goes to them past \
             the mesh: write the annotation {PORT}",
            ports.len()
        )),
    }
}

fn path_of(said: &str, all: &Said<'_>) -> Result<String, String> {
    let mut path = utf8_percent_encode(said, PATH_CHARACTERS).to_string();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    for (name, value) in all.parameters() {
        let separator = if path.contains('?') { '&' } else { '?' };
        let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
        // Writing to a String cannot fail.
        let _ = write!(path, "{separator}{name}={value}");
    }
    if path.len() > LONGEST {
        return Err(left(PATH, said, "with what is asked for it is too long"));
    }
    Ok(path)
}

fn left(name: &str, value: &str, problem: &str) -> String {
    format!(
        "annotation {name} has the value {value:?}: {problem}, so Prometheus does not find the sidecar's metrics by it; correct \
         it, or write {}=false",
        names::MERGE_METRICS
    )
}
