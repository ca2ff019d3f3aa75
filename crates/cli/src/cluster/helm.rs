//! What Helm notes on everything that it installs.

use std::collections::BTreeMap;
use std::fmt;

/// Helm adopts nothing without these two: <https://github.com/helm/helm/blob/main/pkg/action/validate.go>.
const NAME: &str = "meta.helm.sh/release-name";
const NAMESPACE: &str = "meta.helm.sh/release-namespace";

/// A release, which Helm lists until it has uninstalled it itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

impl Release {
    /// That of an object with these annotations.
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            name: annotations.get(NAME)?.clone(),
            namespace: annotations.get(NAMESPACE).cloned().unwrap_or_default(),
        })
    }

    /// What takes it away.
    pub(super) fn uninstall(&self) -> String {
        format!("helm uninstall {self}")
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -n {}", self.name, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_of_a_release_if_helm_has_noted_one() {
        let annotations = |keys: &[&str]| {
            let pairs = keys
                .iter()
                .map(|key| ((*key).to_owned(), "mesh".to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let release = Release::of(&annotations(&[NAME, NAMESPACE]));
        let said = release.map(|it| it.uninstall());
        assert_eq!(said.as_deref(), Some("helm uninstall mesh -n mesh"));
        for others in [&[NAMESPACE][..], &["example.org/by"], &[]] {
            assert_eq!(Release::of(&annotations(others)), None, "{others:?}");
        }
    }
}
