//! Files that pods mount: prepared before the containers start, and kept current while they run.
//!
//! Every file is replaced by rename, so a program that follows a directory sees old or new and nothing between.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{KeyToPath, PodSpec, Volume as Manifest, VolumeProjection};

use super::env::Facts;
use crate::state::write_atomically;

/// How long a token lives unless the volume says otherwise.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// A volume of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Empty at first, writable.
    Empty,
    /// A path of this machine.
    Host(PathBuf),
    /// Files that the sandbox writes.
    Files(Vec<Source>),
}

/// Where files of a volume come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// The value is known.
    Text { path: String, text: String },
    /// A ConfigMap, whole or by key.
    ConfigMap {
        name: String,
        items: Option<Vec<(String, String)>>,
        optional: bool,
    },
    /// A service account token.
    Token {
        path: String,
        audience: String,
        lifetime: Duration,
    },
}

/// What the sources need while the pod runs.
pub(crate) trait Provider {
    /// Data of a ConfigMap of the pod's namespace.
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, String>>;
    /// A new token for the pod.
    fn token(&self, audience: &str, lifetime: Duration) -> Result<String, crate::Error>;
}

/// The volumes of a pod as a manifest has them.
pub(crate) fn parse(spec: &PodSpec, facts: &Facts<'_>) -> Result<Vec<Volume>, String> {
    let volumes = spec.volumes.iter().flatten();
    volumes
        .map(|volume| {
            let content = content(volume, facts)
                .map_err(|problem| format!("volume {}: {problem}", volume.name))?;
            Ok(Volume {
                name: volume.name.clone(),
                content,
            })
        })
        .collect()
}

fn content(volume: &Manifest, facts: &Facts<'_>) -> Result<Content, String> {
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    }
    if let Some(host) = &volume.host_path {
        return Ok(Content::Host(host.path.clone().into()));
    }
    if let Some(map) = &volume.config_map {
        let source = config_map(&map.name, map.items.as_deref(), map.optional)?;
        return Ok(Content::Files(vec![source]));
    }
    if let Some(downward) = &volume.downward_api {
        let items = downward.items.iter().flatten();
        let sources = items.map(|item| {
            field(
                &item.path,
                item.field_ref
                    .as_ref()
                    .map(|field| field.field_path.as_str()),
                facts,
            )
        });
        return Ok(Content::Files(sources.collect::<Result<_, _>>()?));
    }
    let Some(projected) = &volume.projected else {
        return Err(
            "use emptyDir, projected, configMap, downwardAPI or hostPath: others do not exist here"
                .to_owned(),
        );
    };
    let mut sources = Vec::new();
    for projection in projected.sources.iter().flatten() {
        project(projection, facts, &mut sources)?;
    }
    Ok(Content::Files(sources))
}

fn project(
    projection: &VolumeProjection,
    facts: &Facts<'_>,
    sources: &mut Vec<Source>,
) -> Result<(), String> {
    if let Some(token) = &projection.service_account_token {
        let lifetime = token
            .expiration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        sources.push(Source::Token {
            path: within(&token.path)?,
            audience: token
                .audience
                .clone()
                .unwrap_or_else(|| crate::ISSUER.to_owned()),
            lifetime: lifetime.map_or(TOKEN_LIFETIME, Duration::from_secs),
        });
    } else if let Some(map) = &projection.config_map {
        sources.push(config_map(&map.name, map.items.as_deref(), map.optional)?);
    } else if let Some(downward) = &projection.downward_api {
        for item in downward.items.iter().flatten() {
            let path = item
                .field_ref
                .as_ref()
                .map(|field| field.field_path.as_str());
            sources.push(field(&item.path, path, facts)?);
        }
    } else {
        return Err(
            "project serviceAccountToken, configMap or downwardAPI: others do not exist here"
                .to_owned(),
        );
    }
    Ok(())
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Source, String> {
    let pair = |item: &KeyToPath| Ok((item.key.clone(), within(&item.path)?));
    let pairs = |items: &[KeyToPath]| items.iter().map(pair).collect::<Result<_, String>>();
    Ok(Source::ConfigMap {
        name: name.to_owned(),
        items: items.map(pairs).transpose()?,
        optional: optional.unwrap_or(false),
    })
}

/// A path that stays in its volume: nothing is written outside of the node.
fn within(path: &str) -> Result<String, String> {
    let stays = |component| matches!(component, Component::Normal(_));
    if !path.is_empty() && Path::new(path).components().all(stays) {
        return Ok(path.to_owned());
    }
    Err(format!(
        "path {path:?} leads out of it: write a relative one without .."
    ))
}

fn field(path: &str, field: Option<&str>, facts: &Facts<'_>) -> Result<Source, String> {
    let field = field.ok_or("downwardAPI knows fieldRef only")?;
    Ok(Source::Text {
        path: within(path)?,
        text: facts.field(field)?,
    })
}

/// The volumes of one running pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    directory: PathBuf,
    volumes: Vec<Volume>,
    written: HashMap<PathBuf, String>,
    /// Tokens by file, and when each is to be replaced.
    tokens: HashMap<PathBuf, (String, Instant)>,
}

impl Volumes {
    /// `directory` is the pod's own.
    pub(crate) fn new(directory: PathBuf, volumes: Vec<Volume>) -> Self {
        Self {
            directory,
            volumes,
            written: HashMap::new(),
            tokens: HashMap::new(),
        }
    }

    /// Writes what is not current. The inner error says what is missing and may appear later.
    pub(crate) fn refresh(
        &mut self,
        provider: &impl Provider,
    ) -> Result<Result<(), String>, crate::Error> {
        for volume in self.volumes.clone() {
            let directory = self.directory.join(&volume.name);
            let sources = match volume.content {
                Content::Host(_) => continue,
                Content::Empty => {
                    make_directory(&directory, 0o777)?;
                    continue;
                }
                Content::Files(sources) => sources,
            };
            let mut files = BTreeMap::new();
            for source in sources {
                if let Err(missing) = self.collect(&directory, source, provider, &mut files)? {
                    return Ok(Err(format!("volume {}: {missing}", volume.name)));
                }
            }
            self.write(&directory, files)?;
        }
        Ok(Ok(()))
    }

    fn collect(
        &mut self,
        directory: &Path,
        source: Source,
        provider: &impl Provider,
        files: &mut BTreeMap<PathBuf, String>,
    ) -> Result<Result<(), String>, crate::Error> {
        match source {
            Source::Text { path, text } => drop(files.insert(directory.join(path), text)),
            Source::Token {
                path,
                audience,
                lifetime,
            } => {
                let path = directory.join(path);
                let token = self.token(&path, lifetime, || provider.token(&audience, lifetime))?;
                files.insert(path, token);
            }
            Source::ConfigMap {
                name,
                items,
                optional,
            } => {
                return Ok(match provider.config_map(&name) {
                    Some(data) => pick(&name, data, items, optional, directory, files),
                    None if optional => Ok(()),
                    None => Err(format!("ConfigMap {name} does not exist yet")),
                });
            }
        }
        Ok(Ok(()))
    }

    /// The token of a file: the one that it has, or a new one when it is time.
    fn token(
        &mut self,
        path: &Path,
        lifetime: Duration,
        new: impl FnOnce() -> Result<String, crate::Error>,
    ) -> Result<String, crate::Error> {
        let now = Instant::now();
        if let Some((token, _)) = self.tokens.get(path).filter(|(_, renew)| now < *renew) {
            return Ok(token.clone());
        }
        let token = new()?;
        let renew = now + lifetime.mul_f64(0.8);
        self.tokens.insert(path.to_owned(), (token.clone(), renew));
        Ok(token)
    }

    fn write(
        &mut self,
        directory: &Path,
        files: BTreeMap<PathBuf, String>,
    ) -> Result<(), crate::Error> {
        make_directory(directory, 0o755)?;
        let gone = |path: &PathBuf| path.starts_with(directory) && !files.contains_key(path);
        let removed: Vec<_> = self
            .written
            .keys()
            .filter(|path| gone(path))
            .cloned()
            .collect();
        for path in removed {
            // Removed by somebody else is removed.
            let _ = fs::remove_file(&path);
            self.written.remove(&path);
        }
        for (path, text) in files {
            if self.written.get(&path) == Some(&text) {
                continue;
            }
            if let Some(parent) = path.parent() {
                make_directory(parent, 0o755)?;
            }
            write_atomically(&path, text.as_bytes())?;
            self.written.insert(path, text);
        }
        Ok(())
    }
}

/// The files of a ConfigMap, all or those that are asked for; the error says which key is missing.
fn pick(
    name: &str,
    data: BTreeMap<String, String>,
    items: Option<Vec<(String, String)>>,
    optional: bool,
    directory: &Path,
    files: &mut BTreeMap<PathBuf, String>,
) -> Result<(), String> {
    let Some(items) = items else {
        for (key, text) in data {
            let file = within(&key).map_err(|problem| format!("ConfigMap {name}: {problem}"))?;
            files.insert(directory.join(file), text);
        }
        return Ok(());
    };
    for (key, path) in items {
        match data.get(&key) {
            Some(text) => drop(files.insert(directory.join(path), text.clone())),
            None if optional => {}
            None => return Err(format!("ConfigMap {name} has no key {key} yet")),
        }
    }
    Ok(())
}

/// Whatever the umask says.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), crate::Error> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(crate::Error::io(format!("create {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[derive(Default)]
    struct Fake {
        maps: RefCell<BTreeMap<String, BTreeMap<String, String>>>,
        tokens: Cell<u32>,
    }

    impl Provider for Fake {
        fn config_map(&self, name: &str) -> Option<BTreeMap<String, String>> {
            self.maps.borrow().get(name).cloned()
        }

        fn token(&self, audience: &str, _: Duration) -> Result<String, crate::Error> {
            self.tokens.set(self.tokens.get() + 1);
            Ok(format!("{audience} {}", self.tokens.get()))
        }
    }

    fn volumes(directory: &Path, lifetime: Duration) -> Volumes {
        let sources = vec![
            Source::Token {
                path: "token".to_owned(),
                audience: "ca".to_owned(),
                lifetime,
            },
            Source::ConfigMap {
                name: "root".to_owned(),
                items: Some(vec![("root.pem".to_owned(), "ca/root.pem".to_owned())]),
                optional: false,
            },
        ];
        Volumes::new(
            directory.into(),
            vec![Volume {
                name: "v".to_owned(),
                content: Content::Files(sources),
            }],
        )
    }

    #[test]
    fn a_pod_is_held_until_its_config_map_exists_and_then_follows_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let fake = Fake::default();
        let mut volumes = volumes(directory.path(), TOKEN_LIFETIME);
        let missing = volumes
            .refresh(&fake)
            .expect("no error")
            .expect_err("not there");
        assert!(missing.contains("root"), "{missing}");
        let file = directory.path().join("v/ca/root.pem");
        for text in ["one", "two"] {
            let data = BTreeMap::from([("root.pem".to_owned(), text.to_owned())]);
            fake.maps.borrow_mut().insert("root".to_owned(), data);
            volumes.refresh(&fake).expect("no error").expect("there");
            assert_eq!(fs::read_to_string(&file).expect("written"), text);
        }
        assert_eq!(
            fs::read_to_string(directory.path().join("v/token")).expect("written"),
            "ca 1"
        );
    }

    #[test]
    fn nothing_is_written_outside_of_a_volume() {
        for (key, stays) in [
            ("a.conf", true),
            ("..a", true),
            ("..", false),
            ("../a", false),
            ("/etc/a", false),
            ("a/../../b", false),
            ("", false),
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let fake = Fake::default();
            let data = BTreeMap::from([(key.to_owned(), "text".to_owned())]);
            fake.maps.borrow_mut().insert("keys".to_owned(), data);
            let whole = config_map("keys", None, None).expect("no path is named");
            let volume = Volume {
                name: "v".to_owned(),
                content: Content::Files(vec![whole]),
            };
            let mut volumes = Volumes::new(directory.path().join("pod"), vec![volume]);
            let written = volumes.refresh(&fake).expect("no error");
            assert_eq!(written.is_ok(), stays, "{key}: {written:?}");
            let item = KeyToPath {
                key: "k".to_owned(),
                path: key.to_owned(),
                ..KeyToPath::default()
            };
            let named = config_map("keys", Some(&[item]), None);
            assert_eq!(named.is_ok(), stays, "{key}: {named:?}");
        }
    }

    #[test]
    fn a_token_is_replaced_before_it_ends_and_not_sooner() {
        for (lifetime, tokens) in [(TOKEN_LIFETIME, 1), (Duration::ZERO, 2)] {
            let directory = tempfile::tempdir().expect("a directory");
            let fake = Fake::default();
            fake.maps.borrow_mut().insert(
                "root".to_owned(),
                BTreeMap::from([("root.pem".to_owned(), String::new())]),
            );
            let mut volumes = volumes(directory.path(), lifetime);
            for _ in 0..2 {
                volumes.refresh(&fake).expect("no error").expect("there");
            }
            assert_eq!(fake.tokens.get(), tokens);
        }
    }
}
