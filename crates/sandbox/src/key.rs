//! How the sandbox names a namespaced object.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name of an object; written `namespace/name`, or `name` alone for the namespace `default`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl ObjectKey {
    /// The object of that name in that namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key in an object's metadata; empty fields count as absent.
    pub(crate) fn of(metadata: &ObjectMeta) -> Option<Self> {
        let present = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(Self {
            namespace: present(&metadata.namespace).unwrap_or_else(|| "default".to_owned()),
            name: present(&metadata.name)?,
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ObjectKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(format!("{text:?} is not a name: write namespace/name"));
        }
        Ok(Self::new(namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key: ObjectKey = "shop/web".parse().expect("a key");
        assert_eq!(key.to_string(), "shop/web");
        assert_eq!("web".parse(), Ok(ObjectKey::new("default", "web")));
        for bad in ["", "/", "shop/", "/web", "a/b/c"] {
            assert!(bad.parse::<ObjectKey>().is_err(), "{bad}");
        }
    }
}
