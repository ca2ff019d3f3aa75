//! Why the API server did not do what it was asked: because whoever asked may not, or for another reason.

use kube::core::Status;

use crate::cluster::error::ClusterError;

/// A right that is missing, as `kubectl auth can-i` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permission {
    verb: String,
    /// With the group behind a dot, unless that is the core one.
    resource: String,
    subresource: Option<String>,
    namespace: Option<String>,
}

impl Permission {
    /// To reach the ports of a namespace's pods.
    pub(in crate::cluster) fn to_forward(namespace: &str) -> Self {
        Self {
            verb: "create".to_owned(),
            resource: "pods".to_owned(),
            subresource: Some("portforward".to_owned()),
            namespace: Some(namespace.to_owned()),
        }
    }

    /// Out of the words of the API server, which are the same for every authorizer:
    /// <https://github.com/kubernetes/apiserver/blob/master/pkg/endpoints/handlers/responsewriters/errors.go>.
    /// Quotas and policies forbid things, too, in words of their own.
    fn read(message: &str) -> Option<Self> {
        let (_, denied) = message.split_once("\" cannot ")?;
        let (verb, rest) = denied.split_once(" resource \"")?;
        let (resource, rest) = rest.split_once("\" in API group \"")?;
        let (group, rest) = rest.split_once('"')?;
        let namespace = rest
            .split_once(" in the namespace \"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map(|(name, _)| name.to_owned());
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (resource, None),
        };
        let resource = match group {
            "" => resource.to_owned(),
            group => format!("{resource}.{group}"),
        };
        Some(Self {
            verb: verb.to_owned(),
            resource,
            subresource,
            namespace,
        })
    }

    /// How to see whether one has it.
    pub(crate) fn command(&self) -> String {
        let mut command = format!("kubectl auth can-i {} {}", self.verb, self.resource);
        if let Some(sub) = &self.subresource {
            command += &format!(" --subresource={sub}");
        }
        match &self.namespace {
            Some(namespace) => command + &format!(" -n {namespace}"),
            None => command,
        }
    }
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if let Some(sub) = &self.subresource {
            write!(f, "/{sub}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in the whole cluster"),
        }
    }
}

/// What it says, as an error of who wanted to do `what`.
pub(super) fn refused(what: &str, status: &Status) -> ClusterError {
    let what = what.to_owned();
    let permission = Some(&status.message).filter(|_| status.code == 403);
    match permission.and_then(|message| Permission::read(message)) {
        Some(permission) => ClusterError::Forbidden { what, permission },
        None => ClusterError::Refused {
            what,
            reason: status.message.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        let status = serde_json::json!({ "status": "Failure", "code": code, "message": message, "reason": "Forbidden" });
        serde_json::from_value(status).expect("a Status")
    }

    #[test]
    fn a_right_that_is_missing_is_named_as_kubectl_takes_it() {
        for (message, said, command) in [
            (
                "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \"tulle-system\"",
                "list pods in namespace tulle-system",
                "kubectl auth can-i list pods -n tulle-system",
            ),
            (
                "x is forbidden: User \"system:serviceaccount:a:b\" cannot list resource \"mutatingwebhookconfigurations\" in API group \"admissionregistration.k8s.io\" at the cluster scope: RBAC: role \"r\" not found",
                "list mutatingwebhookconfigurations.admissionregistration.k8s.io in the whole cluster",
                "kubectl auth can-i list mutatingwebhookconfigurations.admissionregistration.k8s.io",
            ),
            (
                "pods \"a\" is forbidden: User \"ann\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"n\"",
                "create pods/exec in namespace n",
                "kubectl auth can-i create pods --subresource=exec -n n",
            ),
        ] {
            let ClusterError::Forbidden { what, permission } =
                refused("do it", &status(403, message))
            else {
                panic!("not for want of a right: {message}");
            };
            assert_eq!(
                (&*what, permission.to_string(), permission.command()),
                ("do it", said.to_owned(), command.to_owned())
            );
        }
        let forward = Permission::to_forward("shop").to_string();
        assert_eq!(forward, "create pods/portforward in namespace shop");
    }

    #[test]
    fn what_quotas_policies_and_others_refuse_is_no_missing_right() {
        for (code, message) in [
            (
                403,
                "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
            ),
            (
                403,
                "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\"",
            ),
            (
                404,
                "User \"a\" cannot list resource \"pods\" in API group \"\"",
            ),
            (409, "conflict"),
        ] {
            let error = refused("do it", &status(code, message));
            assert!(matches!(error, ClusterError::Refused { .. }), "{message}");
            assert_eq!(error.to_string(), format!("cannot do it: {message}"));
        }
    }
}
