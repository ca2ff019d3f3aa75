//! Namespaces: what of their labels says whether the mesh is in them.

use std::sync::Arc;

use tulle_runtime::names::labels;

use super::ObjectKey;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name; the namespace of the key is empty.
    pub key: ObjectKey,
    /// What its label for injection says.
    pub inject: Option<Arc<str>>,
    /// The revision of the control plane that its label names.
    pub revision: Option<Arc<str>>,
}

impl Namespace {
    /// A namespace without labels.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            key: ObjectKey::new("", name),
            inject: None,
            revision: None,
        }
    }

    /// Whether its labels ask for the mesh. Without them, pods of it may still be in the mesh by their own.
    #[must_use]
    pub fn is_meshed(&self) -> bool {
        labels::ask_for_the_mesh(self.inject.as_deref(), self.revision.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_whether_the_mesh_is_in_a_namespace() {
        let table = [
            (None, None, false),
            (Some("enabled"), None, true),
            (Some("enabled"), Some("canary"), true),
            (None, Some("canary"), true),
            (Some("disabled"), Some("canary"), false),
            (Some("true"), None, false),
        ];
        for (inject, revision, meshed) in table {
            let namespace = Namespace {
                inject: inject.map(Into::into),
                revision: revision.map(Into::into),
                ..Namespace::new("shop")
            };
            assert_eq!(namespace.is_meshed(), meshed, "{namespace:?}");
        }
    }
}
