//! A node: containerd, kubelet and kube-proxy on a machine of its own, where each is at home in its usual place.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};

use crate::component::Component;
use crate::machine::{Machine, NODE_FOLDER, NODE_PROGRAMS, Place};
use crate::network::{Addresses, DNS_SERVICE, PODS};
use crate::pki::{Authority, Name};
use crate::{cgroups, programs};

/// Where the node's containerd listens.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The image of the process that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "tulle.test/pause:1";

/// Writes what programs of a node read, and starts them.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) place: &'a Place,
    pub(crate) authority: &'a Authority,
    pub(crate) name: String,
    pub(crate) addresses: Addresses,
    number: usize,
}

impl<'a> Node<'a> {
    pub(crate) fn new(place: &'a Place, authority: &'a Authority, number: usize) -> Self {
        Self {
            place,
            authority,
            name: format!("node{number}"),
            addresses: Addresses::of(number),
            number,
        }
    }

    /// Everything that is there before the machine is.
    pub(crate) fn prepare(&self) -> Result<()> {
        let folder = self.folder();
        for part in ["cni", "lib", "log"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("create {}", folder.display()))?;
        }
        cgroups::create(&self.place.tag, &self.name)?;
        let at = [
            self.name.clone(),
            self.addresses.v4.to_string(),
            self.addresses.v6.to_string(),
        ];
        let user = format!("system:node:{}", self.name);
        let name = Name {
            user: &user,
            group: Some("system:nodes"),
        };
        let server = self.authority.issue(name, &at)?;
        let proxy = Name::user("system:kube-proxy");
        let snapshotter = snapshotter(&folder)?;
        let plugins = programs::plugins().context("there are no CNI plugins")?;
        for (file, content) in [
            ("ca.crt", self.authority.pair().certificate),
            ("kubelet.crt", server.certificate),
            ("kubelet.key", server.key),
            ("kubelet.kubeconfig", self.authority.kubeconfig(name)?),
            ("kube-proxy.kubeconfig", self.authority.kubeconfig(proxy)?),
            ("resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
            ("cni/10-pods.conflist", self.cni().to_string()),
            ("kubelet.json", self.kubelet_config().to_string()),
            ("kube-proxy.json", self.proxy_config().to_string()),
            ("containerd.toml", containerd_config(plugins, snapshotter)),
        ] {
            fs::write(folder.join(file), content)?;
        }
        Ok(())
    }

    pub(crate) fn containerd(&self, machine: &Machine) -> Result<Component> {
        let mut command = machine.command("containerd");
        command.args(["--config", &seen("containerd.toml")]);
        let remedy = "its images need a file system that overlays can lie on, such as ext4, xfs or tmpfs: \
            TMPDIR says where clusters keep their files";
        self.start("containerd", command, remedy)
    }

    pub(crate) fn kubelet(&self, machine: &Machine) -> Result<Component> {
        let mut command = machine.command(Path::new(NODE_PROGRAMS).join("kubelet"));
        let Addresses { v4, v6, .. } = self.addresses;
        let zone = char::from(b'a' + u8::try_from(self.number % 26)?);
        command
            .args(["--config", &seen("kubelet.json")])
            .args(["--kubeconfig", &seen("kubelet.kubeconfig")])
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={v4},{v6}"))
            .arg(format!(
                "--node-labels=topology.kubernetes.io/region=local,topology.kubernetes.io/zone=zone-{zone}"
            ));
        let remedy = "it needs what root has outside of containers: cgroups that can be written, and /dev/kmsg";
        self.start("kubelet", command, remedy)
    }

    pub(crate) fn kube_proxy(&self, machine: &Machine) -> Result<Component> {
        let mut command = machine.command(Path::new(NODE_PROGRAMS).join("kube-proxy"));
        command.args(["--config", &seen("kube-proxy.json")]);
        let remedy = "it needs nft 1.0.1 or newer, and nf_tables in the kernel";
        self.start("kube-proxy", command, remedy)
    }

    fn start(
        &self,
        program: &str,
        command: std::process::Command,
        remedy: &'static str,
    ) -> Result<Component> {
        let name = format!("{}-{program}", self.name);
        Component::start(&name, command, &self.place.logs(), remedy)
    }

    fn folder(&self) -> PathBuf {
        self.place.folder.join(&self.name)
    }

    /// A link for each pod, routed by the node: whoever looks at the node sees all of its pods' traffic.
    fn cni(&self) -> Value {
        let ranges = self
            .addresses
            .pods()
            .map(|subnet| json!([{ "subnet": subnet }]));
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                { "type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                }},
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    fn kubelet_config(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "x509": { "clientCAFile": seen("ca.crt") },
                "webhook": { "enabled": true },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": seen("kubelet.crt"),
            "tlsPrivateKeyFile": seen("kubelet.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}/{}", self.place.tag, self.name),
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": seen("resolv.conf"),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            // The disk is the machine's, and nobody could bring back an image.
            "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": false,
            // Seconds instead of minutes, so that a lost node is noticed, and a changed Secret seen.
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 8,
            "syncFrequency": "5s",
        })
    }

    fn proxy_config(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": { "kubeconfig": seen("kube-proxy.kubeconfig") },
            "clusterCIDR": PODS,
            "hostnameOverride": self.name,
            "oomScoreAdj": 0,
            // What it would change is the machine's.
            "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        })
    }
}

/// A file of the node's folder, as the node sees it.
fn seen(file: &str) -> String {
    format!("{NODE_FOLDER}/{file}")
}

/// How containerd keeps images: overlays cannot lie on overlays, such as a container's root.
pub(crate) fn snapshotter(folder: &Path) -> Result<&'static str> {
    let kind = statfs(folder)?.filesystem_type();
    Ok(if kind == OVERLAYFS_SUPER_MAGIC {
        "native"
    } else {
        "overlayfs"
    })
}

fn containerd_config(plugins: &Path, snapshotter: &str) -> String {
    format!(
        r#"version = 2
oom_score = 0
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{}"
    conf_dir = "{NODE_FOLDER}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
"#,
        plugins.display()
    )
}
