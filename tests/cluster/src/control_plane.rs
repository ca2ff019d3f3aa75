//! etcd, API server, controllers and scheduler, on a machine of their own: a lost node takes none of them with it.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::KeyPair;

use crate::component::Component;
use crate::machine::{Machine, Place};
use crate::network::{API_SERVICE, CONTROL_V4, CONTROL_V6, SERVICES};
use crate::pki::{ADMIN, Authority, Name, Pair};
use crate::programs;

pub(crate) const ETCD: &str = "http://127.0.0.1:2379";
const FLAGS: &str =
    "if it is about a flag, the program is of another version: delete it and run ./tests/run";

/// Starts programs of the control plane, in this order.
#[derive(Debug)]
pub(crate) struct ControlPlane<'a> {
    pub(crate) place: &'a Place,
    pub(crate) machine: &'a Machine,
    pub(crate) authority: &'a Authority,
}

impl ControlPlane<'_> {
    pub(crate) fn etcd(&self) -> Result<Component> {
        let mut command = self.machine.command("etcd");
        command
            .arg("--data-dir")
            .arg(self.place.folder.join("etcd"))
            .args(["--listen-client-urls", ETCD])
            .args(["--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            // It need not outlive this machine.
            .arg("--unsafe-no-fsync");
        let remedy = "is the disk full? TMPDIR says where clusters keep their files";
        Component::start("etcd", command, &self.place.logs(), remedy)
    }

    pub(crate) fn api_server(&self) -> Result<Component> {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
        ];
        let addresses = [CONTROL_V4.to_string(), CONTROL_V6.to_string()];
        let at: Vec<String> = names
            .into_iter()
            .chain(API_SERVICE)
            .map(str::to_owned)
            .chain(addresses)
            .collect();
        let (ca, _) = self.write("ca", &self.authority.pair())?;
        let server = self.authority.issue(Name::user("kube-apiserver"), &at)?;
        let (certificate, key) = self.write("apiserver", &server)?;
        let (admin, admin_key) = self.write("admin", &self.authority.issue(ADMIN, &[])?)?;
        let (tokens, tokens_key) = self.write("service-accounts", &token_keys()?)?;
        let mut command = self.machine.command(programs::built("kube-apiserver"));
        for (flag, file) in [
            ("tls-cert-file", &certificate),
            ("tls-private-key-file", &key),
            ("client-ca-file", &ca),
            ("kubelet-client-certificate", &admin),
            ("kubelet-client-key", &admin_key),
            ("kubelet-certificate-authority", &ca),
            ("service-account-key-file", &tokens),
            ("service-account-signing-key-file", &tokens_key),
            ("cert-dir", &self.file("apiserver")),
        ] {
            command.arg(format!("--{flag}={}", file.display()));
        }
        for (flag, value) in [
            ("advertise-address", CONTROL_V4.to_string().as_str()),
            ("allow-privileged", "true"),
            ("authorization-mode", "Node,RBAC"),
            ("enable-admission-plugins", "NodeRestriction"),
            // Nobody translates the addresses of Services here: webhooks are called at their pods.
            ("enable-aggregator-routing", "true"),
            ("endpoint-reconciler-type", "lease"),
            ("etcd-servers", ETCD),
            ("kubelet-preferred-address-types", "InternalIP"),
            (
                "service-account-issuer",
                "https://kubernetes.default.svc.cluster.local",
            ),
            ("service-cluster-ip-range", SERVICES),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        Component::start("kube-apiserver", command, &self.place.logs(), FLAGS)
    }

    pub(crate) fn controllers(&self) -> Result<Component> {
        let mut command = self.client("kube-controller-manager")?;
        for (flag, file) in [
            ("root-ca-file", "ca.crt"),
            ("service-account-private-key-file", "service-accounts.key"),
            ("cluster-signing-cert-file", "ca.crt"),
            ("cluster-signing-key-file", "ca.key"),
        ] {
            command.arg(format!("--{flag}={}", self.file(file).display()));
        }
        command.args([
            "--use-service-account-credentials",
            // A lost node is noticed in seconds.
            "--node-monitor-grace-period=10s",
            "--node-monitor-period=2s",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]);
        let name = "kube-controller-manager";
        Component::start(name, command, &self.place.logs(), FLAGS)
    }

    pub(crate) fn scheduler(&self) -> Result<Component> {
        let command = self.client("kube-scheduler")?;
        Component::start("kube-scheduler", command, &self.place.logs(), FLAGS)
    }

    /// A program that works through the API server, alone.
    fn client(&self, name: &str) -> Result<std::process::Command> {
        let user = format!("system:{name}");
        let config = self.file(&format!("{name}.kubeconfig"));
        fs::write(&config, self.authority.kubeconfig(Name::user(&user))?)?;
        let mut command = self.machine.command(programs::built(name));
        command
            .arg(format!("--kubeconfig={}", config.display()))
            .arg(format!("--cert-dir={}", self.file(name).display()))
            .arg("--leader-elect=false");
        Ok(command)
    }

    fn write(&self, name: &str, pair: &Pair) -> Result<(PathBuf, PathBuf)> {
        let certificate = self.file(&format!("{name}.crt"));
        let key = self.file(&format!("{name}.key"));
        fs::write(&certificate, &pair.certificate)?;
        fs::write(&key, &pair.key)?;
        Ok((certificate, key))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.folder.join("control").join(name)
    }
}

/// What tokens of service accounts are checked and signed with.
fn token_keys() -> Result<Pair> {
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: key.public_key_pem(),
        key: key.serialize_pem(),
    })
}
