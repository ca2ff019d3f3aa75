//! Directories that change: what the store and the report hear of it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::store::{MeshSettings, ObjectKey, Store, Update, Updates, World};

const DEADLINE: Duration = Duration::from_secs(10);

/// A running source over directories.
struct Fixture {
    directories: Vec<TempDir>,
    report: SourceReport,
    updates: Updates,
    store: Store,
    tasks: Tasks,
}

impl Fixture {
    async fn start(directories: Vec<TempDir>) -> Self {
        let (store, writer) = Store::new(MeshSettings::default());
        let (_, updates) = store.subscribe();
        let source = FileSource::open(directories.iter().map(|it| it.path().to_owned()).collect())
            .expect("watchable");
        let report = source.report();
        let tasks = Tasks::new();
        tasks.spawn("source", source.run(writer));
        let mut fixture = Self {
            directories,
            report,
            updates,
            store,
            tasks,
        };
        while !fixture.store.world().synced() {
            fixture.update().await;
        }
        fixture
    }

    async fn update(&mut self) -> Update {
        tokio::time::timeout(DEADLINE, self.updates.next())
            .await
            .expect("in time")
            .expect("a running source")
    }

    /// Waits until the world is as wanted.
    async fn until(&mut self, wanted: impl Fn(&World) -> bool) -> Arc<World> {
        loop {
            let world = self.store.world();
            if wanted(&world) {
                return world;
            }
            self.update().await;
        }
    }

    fn write(&self, layer: usize, name: &str, text: &str) {
        fs::write(self.directories[layer].path().join(name), text).expect("writable");
    }

    /// As the sandbox writes: another name, then a rename.
    fn replace(&self, layer: usize, name: &str, text: &str) {
        let directory = self.directories[layer].path();
        fs::write(directory.join(format!(".{name}.new")), text).expect("writable");
        fs::rename(directory.join(format!(".{name}.new")), directory.join(name)).expect("renamed");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("writable");
    }
    directory
}

fn service(name: &str, ip: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\n\
         spec:\n  clusterIP: {ip}\n  ports:\n  - port: {port}\n"
    )
}

fn port_of(world: &World, name: &str) -> Option<u16> {
    world
        .service(&ObjectKey::new("shop", name))
        .and_then(|service| service.ports.first().map(|port| port.port))
}

#[tokio::test]
async fn everything_that_exists_at_the_start_is_there_when_it_is_synced() {
    let text = format!(
        "{}---\n{}",
        service("a", "10.0.0.1", 1),
        service("b", "10.0.0.2", 2)
    );
    let json = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"web","namespace":"shop"}}"#;
    let files = [
        ("a.yaml", text.as_str()),
        ("b.json", json),
        (".hidden.yaml", "kind: ["),
        ("notes.txt", "no yaml: ["),
    ];
    let fixture = Fixture::start(vec![directory(&files)]).await;
    let world = fixture.store.world();
    assert_eq!(
        (port_of(&world, "a"), port_of(&world, "b")),
        (Some(1), Some(2))
    );
    assert!(world.has_service_account(&ObjectKey::new("shop", "web")));
    assert!(fixture.report.is_empty(), "{:?}", fixture.report.problems());
}

#[tokio::test]
async fn files_are_followed_when_they_come_change_and_go() {
    let mut fixture = Fixture::start(vec![directory(&[])]).await;
    fixture.write(0, "a.yaml", &service("a", "10.0.0.1", 1));
    fixture.until(|world| port_of(world, "a") == Some(1)).await;
    fixture.replace(0, "a.yaml", &service("a", "10.0.0.1", 2));
    fixture.until(|world| port_of(world, "a") == Some(2)).await;
    fs::remove_file(fixture.directories[0].path().join("a.yaml")).expect("there");
    fixture.until(|world| port_of(world, "a").is_none()).await;
}

#[tokio::test]
async fn the_later_directory_wins_until_its_file_goes() {
    let user = directory(&[("a.yaml", &service("a", "10.0.0.1", 1))]);
    let state = directory(&[("a.yaml", &service("a", "10.0.0.1", 2))]);
    let mut fixture = Fixture::start(vec![user, state]).await;
    assert_eq!(port_of(&fixture.store.world(), "a"), Some(2));
    assert!(
        fixture.report.is_empty(),
        "the same object in two directories is no duplicate"
    );
    fs::remove_file(fixture.directories[1].path().join("a.yaml")).expect("there");
    fixture.until(|world| port_of(world, "a") == Some(1)).await;
}

#[tokio::test]
async fn a_duplicate_in_one_directory_is_reported_until_it_is_gone() {
    let files = [
        ("a.yaml", service("a", "10.0.0.1", 1)),
        ("b.yaml", service("a", "10.0.0.1", 2)),
    ];
    let files = [
        (files[0].0, files[0].1.as_str()),
        (files[1].0, files[1].1.as_str()),
    ];
    let mut fixture = Fixture::start(vec![directory(&files)]).await;
    assert_eq!(
        port_of(&fixture.store.world(), "a"),
        Some(1),
        "the first file keeps it"
    );
    let problems = fixture.report.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].place.to_string().ends_with("b.yaml") && problems[0].message.contains("a.yaml"),
        "{}",
        problems[0]
    );
    assert_eq!(
        (problems[0].object.as_str(), problems[0].field.as_str()),
        ("Service shop/a", "metadata.name")
    );
    fs::remove_file(fixture.directories[0].path().join("a.yaml")).expect("there");
    fixture.until(|world| port_of(world, "a") == Some(2)).await;
    assert!(fixture.report.is_empty());
}

#[tokio::test]
async fn a_document_that_breaks_keeps_its_last_good_object_and_the_rest_goes_on() {
    let good = format!(
        "{}---\n{}",
        service("a", "10.0.0.1", 1),
        service("b", "10.0.0.2", 2)
    );
    let mut fixture = Fixture::start(vec![directory(&[("a.yaml", &good)])]).await;

    let bad_value = format!(
        "{}---\n{}",
        service("a", "10.0.0.1", 70_000),
        service("b", "10.0.0.2", 3)
    );
    fixture.replace(0, "a.yaml", &bad_value);
    let world = fixture.until(|world| port_of(world, "b") == Some(3)).await;
    assert_eq!(port_of(&world, "a"), Some(1));
    let problem = fixture.report.problems().remove(0);
    assert_eq!((problem.line, problem.document), (9, 1));
    assert_eq!(
        (problem.object.as_str(), problem.field.as_str()),
        ("Service shop/a", "spec.ports[0].port")
    );

    let bad_syntax = format!("kind: [\n---\n{}", service("b", "10.0.0.2", 4));
    fixture.replace(0, "a.yaml", &bad_syntax);
    let world = fixture.until(|world| port_of(world, "b") == Some(4)).await;
    assert_eq!(
        port_of(&world, "a"),
        Some(1),
        "nobody can tell what the broken document was"
    );

    fixture.replace(0, "a.yaml", &service("b", "10.0.0.2", 5));
    let world = fixture.until(|world| port_of(world, "b") == Some(5)).await;
    assert_eq!(port_of(&world, "a"), None);
    assert!(fixture.report.is_empty());
}

#[tokio::test]
async fn the_items_of_a_list_are_read_like_documents() {
    let item = |name: &str, port: u32| {
        format!(
            "- apiVersion: v1\n  kind: Service\n  metadata: {{name: {name}, namespace: shop}}\n  spec:\n    ports:\n    - port: {port}\n"
        )
    };
    let list = format!(
        "# all of them\n---\napiVersion: v1\nkind: List\nitems:\n{}{}",
        item("a", 1),
        item("b", 70_000)
    );
    let typed = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [
        {"metadata": {"name": "c", "namespace": "shop"}, "spec": {"ports": [{"port": 3}]}},
        {"metadata": {"name": "d", "namespace": "shop"}, "spec": {
            "ports": "none"}}]}"#;
    let files = [
        ("a.yaml", list.as_str()),
        ("b.json", typed),
        ("c.yaml", "apiVersion: v1\nkind: List\nitem: []\n"),
    ];
    let fixture = Fixture::start(vec![directory(&files)]).await;
    let world = fixture.store.world();
    assert_eq!(
        (port_of(&world, "a"), port_of(&world, "c")),
        (Some(1), Some(3))
    );
    let found = fixture.report.problems();
    let found: Vec<_> = found
        .iter()
        .map(|it| (it.line, it.object.as_str(), it.field.as_str()))
        .collect();
    let expected = [
        (17, "Service shop/b", "spec.ports[0].port"),
        (4, "Service shop/d", "spec.ports"),
        (3, "List", "item"),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn manifests_are_read_to_a_depth_and_beyond_it_reported() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 2), "]".repeat(depth - 2));
        let mut block = String::from(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: 1}]}\nx:\n",
        );
        for level in 1..depth {
            block += &format!("{}x:\n", " ".repeat(level));
        }
        let flow = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: b, namespace: shop}}\nspec: {{ports: [{{port: 2}}]}}\nx: [{open}{close}]\n"
        );
        let bad = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: c, namespace: shop}}\nspec: {{ports: [{{port: 0}}]}}\nx: [{open}{close}]\n"
        );
        (block, flow, bad)
    };
    let (block, flow, bad) = nested(64);
    let files = [
        ("a.yaml", block.as_str()),
        ("b.yaml", flow.as_str()),
        ("c.yaml", bad.as_str()),
    ];
    let fixture = Fixture::start(vec![directory(&files)]).await;
    let world = fixture.store.world();
    let problems = fixture.report.problems();
    assert_eq!(
        (port_of(&world, "a"), port_of(&world, "b")),
        (Some(1), Some(2)),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].field, "spec.ports[0].port");

    for depth in [65, 100, 5000] {
        let (block, flow, bad) = nested(depth);
        let json = format!("{}{}", r#"{"x":"#.repeat(depth), "}".repeat(depth));
        let files = [
            ("a.yaml", block.as_str()),
            ("b.yaml", flow.as_str()),
            ("c.yaml", bad.as_str()),
            ("d.json", json.as_str()),
        ];
        let fixture = Fixture::start(vec![directory(&files)]).await;
        let problems = fixture.report.problems();
        assert_eq!(problems.len(), 4, "{depth}: {problems:?}");
    }
}

#[tokio::test]
async fn a_few_bytes_of_aliases_are_not_a_mountain_to_read() {
    let mut bomb =
        String::from("apiVersion: v1\nkind: Service\na0: &a0 [x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let before = level - 1;
        let aliases = vec![format!("*a{before}"); 8].join(", ");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let shared = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: &ns shop, labels: {of: *ns}}\nspec: {ports: [{port: 1}]}\n";
    let files = [("a.yaml", shared), ("b.yaml", bomb.as_str())];
    let fixture = Fixture::start(vec![directory(&files)]).await;
    assert_eq!(port_of(&fixture.store.world(), "a"), Some(1));
    let problems = fixture.report.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.contains("20000"), "{}", problems[0]);
}

#[tokio::test]
async fn a_projected_volume_is_read_again_when_its_link_moves() {
    use std::os::unix::fs::symlink;
    let root = directory(&[]);
    let version = |name: &str, port| {
        fs::create_dir(root.path().join(name)).expect("new");
        fs::write(
            root.path().join(name).join("a.yaml"),
            service("a", "10.0.0.1", port),
        )
        .expect("writable");
    };
    version("..1", 1);
    version("..2", 2);
    symlink("..1", root.path().join("..data")).expect("new");
    symlink("..data/a.yaml", root.path().join("a.yaml")).expect("new");
    let mut fixture = Fixture::start(vec![root]).await;
    assert_eq!(port_of(&fixture.store.world(), "a"), Some(1));
    let root = fixture.directories[0].path();
    symlink("..2", root.join("..tmp")).expect("new");
    fs::rename(root.join("..tmp"), root.join("..data")).expect("renamed");
    fixture.until(|world| port_of(world, "a") == Some(2)).await;
}

#[tokio::test]
async fn a_directory_that_goes_away_is_reported_and_read_again_when_it_is_back() {
    let root = directory(&[]);
    let (path, aside) = (root.path().join("s"), root.path().join("aside"));
    let put = |port| {
        fs::create_dir(&path).expect("new");
        fs::write(path.join("a.yaml"), service("a", "10.0.0.1", port)).expect("writable");
    };
    put(1);
    let (store, mut writer) = Store::new(MeshSettings::default());
    let mut source = FileSource::open(vec![path.clone()]).expect("watchable");
    source.take_in(vec![Change::Anything], &mut writer);
    let port = || port_of(&store.world(), "a");
    assert_eq!(port(), Some(1));

    fs::rename(&path, &aside).expect("renamed");
    source.take_in(vec![Change::Path(path.join("a.yaml"))], &mut writer);
    assert_eq!(port(), Some(1), "the last good object");
    source.take_in(vec![Change::Anything], &mut writer);
    assert_eq!(port(), Some(1), "whatever happened");
    let problems = source.report.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].place, report::Place::File(path.clone()));
    assert!(problems[0].message.contains("put it back"), "{problems:?}");

    put(2);
    source.take_in(Vec::new(), &mut writer);
    assert_eq!(port(), Some(2), "another directory at the same path");
    assert!(source.report.is_empty(), "{:?}", source.report.problems());

    fs::remove_dir_all(&path).expect("removed");
    put(3);
    source.take_in(vec![Change::Path(path.clone())], &mut writer);
    assert_eq!(port(), Some(3), "even if it has the old one's number");
    fs::rename(&path, root.path().join("away")).expect("renamed");
    fs::rename(&aside, &path).expect("renamed");
    source.take_in(Vec::new(), &mut writer);
    assert_eq!(port(), Some(1), "replaced between two looks");
}

#[tokio::test]
async fn a_running_source_follows_what_takes_its_directorys_place() {
    let mut fixture =
        Fixture::start(vec![directory(&[("a.yaml", &service("a", "10.0.0.1", 1))])]).await;
    let path = fixture.directories[0].path().to_owned();
    let aside = directory(&[]);
    fs::rename(&path, aside.path().join("old")).expect("renamed");
    fs::create_dir(&path).expect("new");
    fixture.write(0, "a.yaml", &service("a", "10.0.0.1", 2));
    fixture.until(|world| port_of(world, "a") == Some(2)).await;
    fs::remove_dir_all(&path).expect("removed");
    fs::create_dir(&path).expect("new");
    fixture.write(0, "a.yaml", &service("a", "10.0.0.1", 3));
    fixture.until(|world| port_of(world, "a") == Some(3)).await;
    fixture.replace(0, "a.yaml", &service("a", "10.0.0.1", 4));
    fixture.until(|world| port_of(world, "a") == Some(4)).await;
    assert!(fixture.report.is_empty(), "{:?}", fixture.report.problems());
}

#[test]
fn a_missing_directory_is_refused_by_name() {
    let error = FileSource::open(vec!["/nonexistent/manifests".into()]).expect_err("missing");
    assert!(
        error.to_string().contains("/nonexistent/manifests"),
        "{error}"
    );
}
