//! Copiers of a running application: looked at and changed from outside, by the program itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use transhume_copy::Switch;
use transhume_copy::control::Control;

use crate::{refused, text, transhume};

/// An application at work: `bench`, which serves a path and checks its memory.
struct Application {
    child: Child,
    path: PathBuf,
    json: PathBuf,
}

impl Application {
    fn start(folder: &Path, runs: u32) -> Self {
        let (path, json) = (folder.join("copiers"), folder.join("out.json"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_transhume"))
            .args([
                "bench",
                "flush",
                "--quick",
                "--page-size",
                "4k",
                "--backing",
                "memfd",
            ])
            .args(["--runs", &runs.to_string()])
            .arg("--control")
            .arg(&path)
            .arg("--json")
            .arg(&json)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It is at work when it has copied something; a socket that was there before is stale.
        loop {
            let output = ask(&path, &[]);
            if output.status.success() && jobs(&document(&output), "memcpy") > 0 {
                return Self { child, path, json };
            }
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ask(&self, args: &[&str]) -> Value {
        let output = ask(&self.path, args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        document(&output)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(path: &Path, args: &[&str]) -> Output {
    let path = path.to_str().unwrap();
    let all = [&["engines", "--json", "-", "--control", path], args].concat();
    transhume(&all)
}

fn document(output: &Output) -> Value {
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    document
}

/// What was counted of a copier, where it was.
fn counted<'d>(document: &'d Value, name: &str) -> Option<&'d Value> {
    let copiers = document["application"]["copiers"].as_array().unwrap();
    copiers.iter().find(|copier| copier["name"] == name)
}

fn jobs(document: &Value, name: &str) -> u64 {
    counted(document, name).map_or(0, |copier| copier["jobs"].as_u64().unwrap())
}

/// The memory of the application is right in the end, through as many changes as there was time for.
pub(crate) fn a_running_application_changes_its_copier() {
    let folder = tempfile::tempdir().unwrap();
    // What a process leaves that is killed does not keep the next from serving.
    let killed = Application::start(folder.path(), 1000);
    let path = killed.path.clone();
    drop(killed);
    assert!(path.exists());
    refused(
        &["engines", "--control", path.to_str().unwrap()],
        "no application listens there any more",
    );

    let mut application = Application::start(folder.path(), 20);
    let pid = application.child.id();
    let shown = application.ask(&[]);
    assert_eq!(shown["application"]["pid"], pid);
    assert_eq!(shown["application"]["in_use"]["name"], "memcpy");
    assert!(shown["application"].get("before").is_none());

    // Its reason is the user's call, for which another is asked only at first.
    let first = application.ask(&["--use", "threads:2:memcpy", "--only", "user,demotion"]);
    assert_eq!(first["application"]["before"]["name"], "memcpy");
    assert_eq!(first["application"]["in_use"]["only"], "user,demotion");
    while jobs(&application.ask(&[]), "threads:2:memcpy") == 0 {
        assert!(application.child.try_wait().unwrap().is_none());
    }
    let other = application.ask(&["--use", "threads:2", "--only", "promotion"]);
    let name = other["application"]["in_use"]["name"].clone();
    let before = jobs(&other, "memcpy");
    while jobs(&application.ask(&[]), "memcpy") == before {
        assert!(application.child.try_wait().unwrap().is_none());
    }
    assert_eq!(jobs(&application.ask(&[]), name.as_str().unwrap()), 0);

    let mut changes = 0;
    let status = loop {
        if let Some(status) = application.child.try_wait().unwrap() {
            break status;
        }
        let name = ["memcpy", "threads:2:memcpy", "threads:3:memcpy"][changes % 3];
        let output = ask(&application.path, &["--use", name]);
        if output.status.success() {
            let shown = document(&output);
            assert_eq!(shown["application"]["in_use"]["name"], name);
            let copier = counted(&shown, name).unwrap();
            assert_eq!(copier["in_use"], true);
            let sum = ["copied", "fell_back", "panicked"].map(|key| copier[key].as_u64().unwrap());
            assert_eq!(copier["jobs"], sum.iter().sum::<u64>());
            changes += 1;
        }
    };
    assert!(status.success() && changes > 0, "{status}");
    let document: Value = serde_json::from_slice(&fs::read(&application.json).unwrap()).unwrap();
    let rows = document["results"].as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        assert_eq!(
            (&row["errors"], &row["copier"]),
            (&0.into(), &"switch".into())
        );
    }
    assert!(!application.path.exists(), "it is gone with its process");
}

pub(crate) fn what_is_shown_of_an_application() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let control = Control::serve(folder.path().join("copiers"), Arc::clone(&switch)).unwrap();
    let path = control.path().to_str().unwrap();
    let engines = ["engines", "--control", path];
    let output = transhume(
        &[
            &engines[..],
            &["--use", "threads:2:memcpy", "--only", "demotion"],
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let pid = format!("process {}", std::process::id());
    for expected in [
        pid.as_str(),
        path,
        "before: memcpy",
        "in use: threads:2:memcpy for demotion; memcpy for other reasons",
        "streaming-avx2",
        "* threads:2:memcpy",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_eq!(switch.in_use().only.to_string(), "demotion");
    let json = transhume(&["engines", "--control", path, "--json", "-"]);
    let here = transhume(&["engines", "--json", "-"]);
    // The two keep the figures of `auto` in different places.
    let others = |output| {
        let mut rows = document(output)["engines"].as_array().unwrap().clone();
        rows.retain(|row| row["name"] != "auto");
        rows
    };
    assert_eq!(others(&json), others(&here));
    assert!(document(&here).get("application").is_none());
}

pub(crate) fn what_cannot_be_asked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let switch = Arc::new(Switch::default());
    let control = Control::serve(folder.path().join("copiers"), Arc::clone(&switch)).unwrap();
    let path = control.path().to_str().unwrap();
    let engines = |more: &[&str], expected: &str| {
        refused(&[&["engines", "--control", path], more].concat(), expected);
    };
    engines(
        &["--use", "mempcy"],
        "no copier is named 'mempcy'; the copiers are",
    );
    engines(&["--use", "threads:0"], "must be 1 or more");
    engines(
        &["--use", "two words"],
        "'two words' cannot be the name of a copier",
    );
    engines(
        &["--use", "two\nlines"],
        "'two\\nlines' cannot be the name of a copier",
    );
    engines(&["--use", ""], "'' cannot be the name of a copier");
    engines(
        &["--use", "memcpy", "--only", "boredom"],
        "no reason is named 'boredom'; the reasons are user, demotion, promotion, compaction, or all",
    );
    engines(&["--only", "demotion"], "--use <NAME>");
    refused(&["engines", "--use", "memcpy"], "--control <PATH>");
    assert_eq!(switch.in_use().name, "memcpy");

    let absent = folder.path().join("absent");
    let absent = absent.to_str().unwrap();
    refused(
        &["engines", "--control", absent],
        "there is no such socket; cure:",
    );
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let file = file.to_str().unwrap();
    refused(&["engines", "--control", file], "it is not a socket");
    refused(&["engines", "--control", &"x".repeat(200)], "");
    let stale = folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    refused(
        &["engines", "--control", stale.to_str().unwrap()],
        "no application listens there",
    );

    // The same where one is to be served.
    refused(
        &["bench", "flush", "--control", path],
        "is in use by another application",
    );
    refused(
        &["bench", "flush", "--control", file],
        "exists and is not a socket",
    );
    refused(
        &["bench", "flush", "--control", "/proc/copiers"],
        "--control: cannot bind",
    );
    refused(
        &["bench", "copy", "--control", absent],
        "--control is not for bench copy",
    );
    refused(
        &["bench", "move", "--control", absent],
        "--control is not for bench move",
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    assert!(!Path::new(absent).exists());
}

/// Another user gets in neither by the file's mode nor, where somebody changes that, by asking.
pub(crate) fn another_user_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    // The one that was built may be where others cannot reach it.
    let program = folder.path().join("transhume");
    fs::copy(env!("CARGO_BIN_EXE_transhume"), &program).unwrap();
    let switch = Arc::new(Switch::default());
    let control = Control::serve(folder.path().join("copiers"), Arc::clone(&switch)).unwrap();
    let refused = |path: &Path, expected: &str| {
        let output = Command::new(&program)
            .args(["engines", "--use", "threads:2", "--control"])
            .arg(path)
            .current_dir(folder.path())
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(
            errors.contains(expected) && errors.lines().count() == 1,
            "{errors}"
        );
    };
    refused(control.path(), "it belongs to another user");
    fs::set_permissions(control.path(), Permissions::from_mode(0o666)).unwrap();
    refused(control.path(), "another user's process is not served");
    assert_eq!(switch.in_use().name, "memcpy");
}

/// Two programs that measure at once both end; what they found is shown, and before that nothing is
/// measured by the way.
pub(crate) fn what_auto_chooses_is_shown_once_it_was_measured() {
    let caches = tempfile::tempdir().unwrap();
    let engines = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_transhume"));
        command.args(["engines", "--json", "-"]).args(args);
        command.env("XDG_CACHE_HOME", caches.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let shown = |output: Output| {
        assert!(output.status.success(), "{}", text(&output.stderr));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = document["engines"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == "auto").unwrap();
        assert_eq!(row["available"], true);
        (row["detail"].as_str().unwrap().to_owned(), document)
    };
    let (detail, document) = shown(engines(&[]).output().unwrap());
    assert!(detail.contains("not calibrated yet"), "{detail}");
    assert!(document.get("auto").is_none());
    assert_eq!(fs::read_dir(caches.path()).unwrap().count(), 0);

    let measuring = [(); 2].map(|()| engines(&["--calibrate"]).spawn().unwrap());
    for child in measuring {
        let (detail, document) = shown(child.wait_with_output().unwrap());
        assert!(
            detail.starts_with("4k: ") && detail.contains("; 2m: "),
            "{detail}"
        );
        assert!(document["auto"].as_array().unwrap().len() >= 7);
    }
    let folder = caches.path().join("transhume");
    let files = fs::read_dir(&folder).unwrap().collect::<Vec<_>>();
    assert_eq!(files.len(), 1);
    let path = files[0].as_ref().unwrap().path();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let taken = fs::read(&path).unwrap();
    let (_, document) = shown(engines(&[]).output().unwrap());
    for choice in document["auto"].as_array().unwrap() {
        let line = format!(" {} ", choice["copier"].as_str().unwrap());
        assert!(String::from_utf8_lossy(&taken).contains(&line), "{line}");
    }
    assert_eq!(fs::read(&path).unwrap(), taken, "a list measures nothing");
    refused(&["engines", "--calibrate", "--control", "x"], "--calibrate");
}
