//! Environment of a container: values, `$(NAME)` references, the downward API and ConfigMaps.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::network::{GATEWAY_V4, PodIps};

/// What the environment of a pod's containers can refer to.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) ips: PodIps,
    /// Data of a ConfigMap of the pod's namespace.
    pub(crate) config_map: &'a dyn Fn(&str) -> Option<BTreeMap<String, String>>,
}

impl Facts<'_> {
    /// The value of a `fieldRef`; an error names the path.
    pub(crate) fn field(&self, path: &str) -> Result<String, String> {
        let metadata = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        if let Some((map, key)) = path
            .strip_suffix("']")
            .and_then(|path| path.split_once("['"))
        {
            let map = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(unknown_field(path)),
            };
            return Ok(map
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default());
        }
        Ok(match path {
            "metadata.name" => text(&metadata.name),
            "metadata.namespace" => text(&metadata.namespace),
            "metadata.uid" => text(&metadata.uid),
            "metadata.labels" => listed(metadata.labels.as_ref()),
            "metadata.annotations" => listed(metadata.annotations.as_ref()),
            "spec.nodeName" => crate::NODE_NAME.to_owned(),
            "spec.serviceAccountName" => spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_else(|| "default".to_owned()),
            "status.podIP" => self.ips.v4.to_string(),
            "status.podIPs" => self
                .ips
                .all()
                .map(|ip| ip.to_string())
                .collect::<Vec<_>>()
                .join(","),
            "status.hostIP" | "status.hostIPs" => GATEWAY_V4.to_string(),
            _ => return Err(unknown_field(path)),
        })
    }

    /// The container's own variables, in order, references expanded.
    pub(crate) fn environment(
        &self,
        container: &Container,
    ) -> Result<Vec<(String, String)>, String> {
        let mut variables = Variables::default();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let Some(reference) = &source.config_map_ref else {
                return Err("envFrom can only read ConfigMaps here: use configMapRef".to_owned());
            };
            match (self.config_map)(&reference.name) {
                Some(data) => data
                    .into_iter()
                    .for_each(|(key, value)| variables.set(format!("{prefix}{key}"), value)),
                None if reference.optional == Some(true) => {}
                None => {
                    return Err(format!(
                        "envFrom names ConfigMap {}, which does not exist",
                        reference.name
                    ));
                }
            }
        }
        for variable in container.env.iter().flatten() {
            if let Some(value) = self.value(variable, &variables)? {
                variables.set(variable.name.clone(), value);
            }
        }
        Ok(variables.0)
    }

    fn value(&self, variable: &EnvVar, earlier: &Variables) -> Result<Option<String>, String> {
        let Some(source) = &variable.value_from else {
            return Ok(Some(
                earlier.expand(variable.value.as_deref().unwrap_or_default()),
            ));
        };
        if let Some(field) = &source.field_ref {
            let value = self.field(&field.field_path);
            return value
                .map(Some)
                .map_err(|problem| format!("env {}: {problem}", variable.name));
        }
        let Some(reference) = &source.config_map_key_ref else {
            return Err(format!(
                "env {}: only fieldRef and configMapKeyRef exist here",
                variable.name
            ));
        };
        let value =
            (self.config_map)(&reference.name).and_then(|mut data| data.remove(&reference.key));
        match value {
            None if reference.optional != Some(true) => Err(format!(
                "env {}: ConfigMap {} with key {} does not exist",
                variable.name, reference.name, reference.key
            )),
            value => Ok(value),
        }
    }
}

fn unknown_field(path: &str) -> String {
    format!(
        "fieldRef {path} does not exist here: use metadata.*, spec.nodeName, spec.serviceAccountName, status.podIP(s) or status.hostIP"
    )
}

fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Variables that are already known, in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    pub(crate) fn of(list: &[(String, String)]) -> Self {
        Self(list.to_vec())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Replaces `$(NAME)`; `$$` is a dollar, and a reference to nothing stays as it is, as in Kubernetes.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                expanded.push('$');
                rest = after;
                continue;
            }
            let reference = after
                .strip_prefix('(')
                .and_then(|after| after.split_once(')'));
            let value = reference.and_then(|(name, tail)| Some((self.get(name)?, tail)));
            match value {
                Some((value, tail)) => {
                    expanded.push_str(value);
                    rest = tail;
                }
                None => {
                    expanded.push('$');
                    rest = after;
                }
            }
        }
        expanded + rest
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_expand_as_in_kubernetes() {
        let variables = Variables::of(&[
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), String::new()),
        ]);
        let table = [
            ("x$(A)y", "x1y"),
            ("$(B)", ""),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$(A)$(A)", "11"),
        ];
        for (text, expected) in table {
            assert_eq!(variables.expand(text), expected, "{text}");
        }
    }

    fn environment(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = json!({ "metadata": { "name": "web-0", "namespace": "shop", "labels": { "app": "web" } }, "spec": { "containers": [] } });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let maps = |name: &str| {
            (name == "settings").then(|| BTreeMap::from([("KEY".to_owned(), "value".to_owned())]))
        };
        let facts = Facts {
            pod: &pod,
            ips: PodIps::of(2, false),
            config_map: &maps,
        };
        facts.environment(&serde_json::from_value(container).expect("a container"))
    }

    #[test]
    fn values_come_from_fields_and_config_maps() {
        let variables = environment(json!({ "name": "c",
            "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "settings" } }],
            "env": [
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                { "name": "K", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "KEY" } } },
                { "name": "GONE", "valueFrom": { "configMapKeyRef": { "name": "none", "key": "KEY", "optional": true } } },
                { "name": "URL", "value": "http://$(IP)/$(P_KEY)" },
            ] }))
        .expect("all known");
        let text: Vec<_> = variables
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            text,
            [
                "P_KEY=value",
                "IP=10.244.0.2",
                "APP=web",
                "K=value",
                "URL=http://10.244.0.2/value"
            ]
        );
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let table = [
            (
                json!({ "fieldRef": { "fieldPath": "spec.bad" } }),
                "spec.bad",
            ),
            (
                json!({ "configMapKeyRef": { "name": "none", "key": "k" } }),
                "none",
            ),
            (
                json!({ "secretKeyRef": { "name": "s", "key": "k" } }),
                "configMapKeyRef",
            ),
        ];
        for (source, named) in table {
            let problem =
                environment(json!({ "name": "c", "env": [{ "name": "X", "valueFrom": source }] }));
            assert!(
                problem
                    .as_ref()
                    .is_err_and(|problem| problem.contains(named)),
                "{problem:?}"
            );
        }
    }
}
