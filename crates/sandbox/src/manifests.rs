//! The user's manifests: read from directories, kept parsed by file.
//!
//! A document that cannot be read is reported by file and line; a file that had been good keeps its last good objects.
//! Kinds that the sandbox does not run (routes, policies ...) are left to the control plane, which reads the same files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::workload::Workload;
use crate::{Error, ObjectKey};

/// Everything that the manifests say and the sandbox understands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    pub(crate) services: BTreeMap<ObjectKey, Service>,
    pub(crate) config_maps: BTreeMap<ObjectKey, ConfigMap>,
    pub(crate) slices: BTreeMap<ObjectKey, EndpointSlice>,
    pub(crate) workloads: BTreeMap<(&'static str, ObjectKey), Workload>,
}

/// One object of a manifest.
#[derive(Debug, Clone)]
enum Object {
    Namespace(Namespace),
    Service(Box<Service>),
    ConfigMap(ConfigMap),
    EndpointSlice(EndpointSlice),
    Workload(Workload),
}

/// The directories, with what was last good in each file.
#[derive(Debug)]
pub(crate) struct Manifests {
    directories: Vec<PathBuf>,
    files: HashMap<PathBuf, Parsed>,
}

#[derive(Debug, Default)]
struct Parsed {
    text: String,
    objects: Vec<(&'static str, ObjectKey, Object)>,
    /// What is wrong with `text`; the objects may then be older than it.
    problems: Vec<(u64, String)>,
}

impl Manifests {
    /// Objects of later directories replace those of earlier ones.
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            files: HashMap::new(),
        }
    }

    /// Whether the directories say something else than when they were read.
    pub(crate) fn stale(&self) -> bool {
        let mut unseen = self.files.len();
        for directory in &self.directories {
            for file in manifest_files(directory).unwrap_or_default() {
                let same =
                    |parsed: &Parsed| fs::read_to_string(&file).unwrap_or_default() == parsed.text;
                if !self.files.get(&file).is_some_and(same) {
                    return true;
                }
                unseen = unseen.saturating_sub(1);
            }
        }
        unseen > 0
    }

    /// Reads what changed and returns everything, together with all that is wrong.
    pub(crate) fn read(&mut self) -> (Objects, Vec<Error>) {
        let mut objects = Objects::default();
        let mut problems = Vec::new();
        let mut previous = std::mem::take(&mut self.files);
        for directory in &self.directories {
            let files = match manifest_files(directory) {
                Ok(files) => files,
                Err(error) => {
                    problems.push(error);
                    continue;
                }
            };
            let mut seen: HashMap<(&'static str, ObjectKey), PathBuf> = HashMap::new();
            for file in files {
                let parsed = match fs::read_to_string(&file) {
                    Ok(text) => Parsed::update(previous.remove(&file).unwrap_or_default(), text),
                    Err(error) => {
                        problems.push(Error::io(format!("read {}", file.display()))(error));
                        previous.remove(&file).unwrap_or_default()
                    }
                };
                problems.extend(
                    parsed
                        .problems
                        .iter()
                        .map(|(line, problem)| Error::Manifest {
                            file: file.clone(),
                            line: *line,
                            problem: problem.clone(),
                        }),
                );
                for (kind, key, object) in &parsed.objects {
                    if let Some(first) = seen.insert((kind, key.clone()), file.clone()) {
                        problems.push(Error::Manifest {
                            file: file.clone(),
                            line: 1,
                            problem: format!(
                                "{kind} {key} is in {} already: remove one",
                                first.display()
                            ),
                        });
                        continue;
                    }
                    objects.insert(key, object);
                }
                self.files.insert(file, parsed);
            }
        }
        (objects, problems)
    }
}

impl Parsed {
    fn update(last: Self, text: String) -> Self {
        if last.text == text {
            return last;
        }
        let mut next = Self {
            text,
            ..Self::default()
        };
        for (line, document) in documents(&next.text) {
            match parse(document) {
                Ok(Some(object)) => next.objects.push(object),
                Ok(None) => {}
                Err((at, problem)) => next.problems.push((line + at, problem)),
            }
        }
        if !next.problems.is_empty() && !last.objects.is_empty() {
            next.objects = last.objects;
        }
        next
    }
}

impl Objects {
    fn insert(&mut self, key: &ObjectKey, object: &Object) {
        match object.clone() {
            Object::Namespace(namespace) => {
                drop(self.namespaces.insert(key.name.clone(), namespace))
            }
            Object::Service(service) => drop(self.services.insert(key.clone(), *service)),
            Object::ConfigMap(map) => drop(self.config_maps.insert(key.clone(), map)),
            Object::EndpointSlice(slice) => drop(self.slices.insert(key.clone(), slice)),
            Object::Workload(workload) => {
                drop(
                    self.workloads
                        .insert((workload.kind.as_str(), key.clone()), workload),
                );
            }
        }
    }
}

/// What a file says, and what is wrong with it: for fuzz targets.
#[cfg(feature = "fuzz")]
pub(crate) fn objects(text: &str) -> (Vec<(&'static str, ObjectKey)>, Vec<(u64, String)>) {
    let parsed = Parsed::update(Parsed::default(), text.to_owned());
    let objects = parsed.objects.into_iter();
    let named = objects.map(|(kind, key, _)| (kind, key)).collect();
    (named, parsed.problems)
}

/// Manifests directly in the directory, by name; dot-files are somebody's temporary files.
fn manifest_files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let what = || format!("read directory {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io(what()))? {
        let path = entry.map_err(Error::io(what()))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !hidden && matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The documents of a file, each with the number of lines before it.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut position) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push((first, &text[start..position]));
            (start, first) = (position, number);
        }
        position += line.len();
    }
    documents.push((first, &text[start..]));
    documents
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

type Located = (&'static str, ObjectKey, Object);
/// Line within the document, counted from one, and what is wrong there.
type Problem = (u64, String);

fn parse(document: &str) -> Result<Option<Located>, Problem> {
    let Some(head) = typed::<Option<Head>>(document)? else {
        return Ok(None);
    };
    let kind = head
        .kind
        .ok_or((1, "the document has no kind: add one".to_owned()))?;
    let version = head
        .api_version
        .ok_or((1, format!("{kind} has no apiVersion: add one")))?;
    match (version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => read(document, &kind, |namespace: Namespace, key| {
            let key = ObjectKey::new("", key.name);
            Ok(("Namespace", key, Object::Namespace(namespace)))
        }),
        ("v1", "Service") => read(document, &kind, |service: Service, key| {
            Ok(("Service", key, Object::Service(Box::new(service))))
        }),
        ("v1", "ConfigMap") => read(document, &kind, |map: ConfigMap, key| {
            Ok(("ConfigMap", key, Object::ConfigMap(map)))
        }),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            read(document, &kind, |slice: EndpointSlice, key| {
                Ok(("EndpointSlice", key, Object::EndpointSlice(slice)))
            })
        }
        // There is nothing to do for one, but a broken one is reported.
        ("v1", "ServiceAccount") => {
            let account: ServiceAccount = typed(document)?;
            key(&kind, &account.metadata).map(|_| None)
        }
        ("v1", "Pod") | ("apps/v1", "Deployment" | "StatefulSet") => workload(document, &kind),
        ("apps/v1", "DaemonSet" | "ReplicaSet") | ("batch/v1", "Job" | "CronJob") => {
            not_here(&kind, "write Pods, Deployments or StatefulSets")
        }
        ("v1", "Secret") => not_here(&kind, "write a ConfigMap, and mount that"),
        ("v1", "List") => not_here(&kind, "write its items, one a document"),
        _ => Ok(None),
    }
}

/// What runs pods. It is kept as JSON too, so that fields our types do not know survive.
fn workload(document: &str, kind: &str) -> Result<Option<Located>, Problem> {
    let refused = |problem| (1, problem);
    match kind {
        "Deployment" => read(document, kind, |deployment: Deployment, key| {
            let workload = Workload::deployment(key.clone(), &deployment, &typed(document)?);
            let workload = Object::Workload(workload.map_err(refused)?);
            Ok(("Deployment", key, workload))
        }),
        "StatefulSet" => read(document, kind, |set: StatefulSet, key| {
            let workload = Workload::stateful_set(key.clone(), &set, &typed(document)?);
            let workload = Object::Workload(workload.map_err(refused)?);
            Ok(("StatefulSet", key, workload))
        }),
        _ => read(document, kind, |_: Pod, key| {
            let workload = Workload::pod(key.clone(), typed(document)?);
            Ok(("Pod", key, Object::Workload(workload)))
        }),
    }
}

/// Reads a document as a type that has a name.
fn read<T: DeserializeOwned + k8s_openapi::Metadata<Ty = ObjectMeta>>(
    document: &str,
    kind: &str,
    locate: impl FnOnce(T, ObjectKey) -> Result<Located, Problem>,
) -> Result<Option<Located>, Problem> {
    let object: T = typed(document)?;
    let key = key(kind, object.metadata())?;
    locate(object, key).map(Some)
}

fn not_here(kind: &str, remedy: &str) -> Result<Option<Located>, Problem> {
    Err((1, format!("the sandbox does not run {kind}: {remedy}")))
}

fn key(kind: &str, metadata: &ObjectMeta) -> Result<ObjectKey, Problem> {
    ObjectKey::of(metadata).ok_or_else(|| (1, format!("{kind} has no metadata.name: add one")))
}

fn typed<T: DeserializeOwned>(document: &str) -> Result<T, Problem> {
    // As for kubectl, `0644` is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let error = error.without_snippet();
        (line, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {}\n";

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("written");
        }
        directory
    }

    #[test]
    fn documents_are_read_and_foreign_kinds_are_left_alone() {
        let route =
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n";
        let text = format!("# a comment\n---\n{WEB}---\n{route}");
        let directory = directory(&[("a.yaml", &text), (".hidden.yaml", "{"), ("notes.txt", "{")]);
        let (objects, problems) = Manifests::new(vec![directory.path().into()]).read();
        assert!(problems.is_empty(), "{problems:?}");
        assert!(
            objects
                .services
                .contains_key(&ObjectKey::new("shop", "web"))
        );
    }

    #[test]
    fn a_mode_in_octal_is_the_mode_that_kubectl_reads() {
        let source: k8s_openapi::api::core::v1::SecretVolumeSource =
            typed("defaultMode: 0644").expect("a mode");
        assert_eq!(source.default_mode, Some(0o644));
    }

    #[test]
    fn a_bad_document_is_reported_by_file_and_line_and_the_rest_works() {
        let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec:\n  ports: 3\n";
        let directory = directory(&[
            ("a.yaml", WEB),
            (
                "b.yaml",
                &format!("{WEB}---\n{bad}").replace("name: web", "name: b"),
            ),
        ]);
        let (objects, problems) = Manifests::new(vec![directory.path().into()]).read();
        assert_eq!(objects.services.len(), 2);
        let [problem] = &problems[..] else {
            panic!("{problems:?}")
        };
        let text = problem.to_string();
        assert!(text.contains("b.yaml:10:"), "{text}");
    }

    #[test]
    fn kinds_that_cannot_run_here_are_refused_by_name() {
        for (kind, remedy) in [
            ("batch/v1\nkind: Job", "Deployments"),
            ("v1\nkind: Secret", "ConfigMap"),
            ("v1\nkind: List", "its items"),
        ] {
            let text = format!("apiVersion: {kind}\nmetadata: {{name: j}}\n");
            let directory = directory(&[("a.yaml", &text)]);
            let (_, problems) = Manifests::new(vec![directory.path().into()]).read();
            let problem = problems[0].to_string();
            let (_, name) = kind.split_once(": ").expect("a kind");
            assert!(
                problem.contains(&format!("does not run {name}")) && problem.contains(remedy),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_objects_and_a_removed_one_does_not() {
        let directory = directory(&[("a.yaml", WEB)]);
        let mut manifests = Manifests::new(vec![directory.path().into()]);
        assert_eq!(manifests.read().0.services.len(), 1);
        fs::write(directory.path().join("a.yaml"), "kind: [").expect("written");
        let (objects, problems) = manifests.read();
        assert_eq!((objects.services.len(), problems.len()), (1, 1));
        fs::remove_file(directory.path().join("a.yaml")).expect("removed");
        assert_eq!(manifests.read().0.services.len(), 0);
    }

    #[test]
    fn a_later_directory_replaces_and_a_duplicate_within_one_is_an_error() {
        let first = directory(&[("a.yaml", WEB), ("b.yaml", WEB)]);
        let second = directory(&[(
            "a.yaml",
            &WEB.replace("spec: {}", "spec: {clusterIP: 10.96.7.7}"),
        )]);
        let directories = vec![first.path().into(), second.path().into()];
        let (objects, problems) = Manifests::new(directories).read();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("already"), "{problems:?}");
        let service = &objects.services[&ObjectKey::new("shop", "web")];
        let ip = service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.as_deref());
        assert_eq!(ip, Some("10.96.7.7"));
    }
}
