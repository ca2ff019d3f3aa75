//! What the target of a channel means.

use std::sync::Arc;

use crate::store::{MeshSettings, ObjectKey};

/// A port of a Service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) service: ObjectKey,
    pub(super) port: u16,
    /// The client's own namespace was meant, because none was named.
    pub(super) own_namespace: bool,
}

/// Reads `NAME:PORT`, `NAME.NS:PORT`, `NAME.NS.svc:PORT` or `NAME.NS.svc.DOMAIN:PORT`.
pub(super) fn parse(
    mesh: &MeshSettings,
    namespace: Option<&Arc<str>>,
    target: &str,
) -> Option<Target> {
    let (host, port) = target.rsplit_once(':')?;
    // One way to write a number, so that a port has one name.
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|number| *number > 0 && number.to_string() == port)?;
    let of_svc = |host: &'_ str| {
        host.strip_suffix(".svc")
            .filter(|it| it.contains('.'))
            .map(str::len)
    };
    let in_domain = host
        .strip_suffix(&*mesh.cluster_domain)
        .and_then(|host| host.strip_suffix('.'));
    let length = match in_domain {
        Some(host) => of_svc(host)?,
        None => of_svc(host).unwrap_or(host.len()),
    };
    let host = &host[..length];
    let is_label = |text: &str| !text.is_empty() && !text.contains(['.', ':', '/', '|']);
    let (name, namespace, own_namespace) = match host.split_once('.') {
        Some((name, namespace)) => (name, namespace, false),
        None => (host, &**namespace?, true),
    };
    (is_label(name) && is_label(namespace)).then(|| Target {
        service: ObjectKey::new(namespace, name),
        port,
        own_namespace,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_a_service_in_four_ways_and_nothing_else_does() {
        let mesh = MeshSettings::default();
        let own = Arc::from("shop");
        let table = [
            ("web:80", Some(("shop", "web"))),
            ("web.other:80", Some(("other", "web"))),
            ("web.other.svc:80", Some(("other", "web"))),
            ("web.other.svc.cluster.local:80", Some(("other", "web"))),
            ("svc:80", Some(("shop", "svc"))),
            ("web", None),
            ("web:", None),
            ("web:0", None),
            ("web:080", None),
            ("web:+80", None),
            ("web:65536", None),
            (":80", None),
            (".other:80", None),
            ("web.:80", None),
            ("web.svc:80", Some(("svc", "web"))),
            ("web.other.svc.evil.local:80", None),
            ("web.other.cluster.local:80", None),
            ("web.svc.cluster.local:80", None),
            ("a.b.c:80", None),
            ("outbound|80||web.shop.svc.cluster.local", None),
            ("[::1]:80", None),
        ];
        for (target, expected) in table {
            let parsed = parse(&mesh, Some(&own), target);
            let expected = expected.map(|(namespace, name)| ObjectKey::new(namespace, name));
            assert_eq!(parsed.map(|it| it.service), expected, "{target}");
        }
        assert_eq!(parse(&mesh, None, "web:80"), None, "nobody's own namespace");
    }
}
