//! Why pages stay, and why requests are refused.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::Case;
use crate::herd::Herd;
use crate::program::{command, moves, refused, transhume};

pub(crate) const CASES: &[Case] = &[
    ("reasons::shared_since_a_fork", shared_since_a_fork),
    ("reasons::in_a_pipe", in_a_pipe),
    ("reasons::a_cpuset", a_cpuset),
    ("reasons::nodes_that_are_none", nodes_that_are_none),
    ("reasons::processes_that_are_none", processes_that_are_none),
    ("reasons::not_permitted", not_permitted),
];

/// A process that this test is, in another life; it has said that it is ready.
pub(crate) fn live(life: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(life)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (child, line.trim().to_owned())
}

/// Ends it by closing its input; it says by its status whether its memory was right.
pub(crate) fn let_go(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn shared_since_a_fork() {
    let (child, range) = live("forked");
    let report = moves(child.id(), 0, 1, &["--only", &range]);
    assert_eq!(report.code, 3, "{report:?}");
    assert_eq!((report.moved(), report.stayed("shared")), (0, 4 << 20));
    let report = moves(child.id(), 0, 1, &["--only", &range, "--include-shared"]);
    assert_eq!((report.code, report.moved()), (0, 4 << 20), "{report:?}");
    let_go(child);
}

/// A frame that a pipe refers to cannot move: it is tried again, and said in the end.
fn in_a_pipe() {
    let (child, range) = live("spliced");
    let report = moves(child.id(), 0, 1, &["--only", &range]);
    assert_eq!(report.code, 3, "{report:?}");
    assert_eq!(report.stayed("pinned"), 8 * 4096, "{report:?}");
    assert_eq!(report.moved(), (4 << 20) - 8 * 4096);
    assert!(
        report.only()["retries"].as_u64().unwrap() >= 8 * 9,
        "{report:?}"
    );
    let_go(child);
}

fn a_cpuset() {
    let group = "/sys/fs/cgroup/near";
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset").unwrap();
    fs::create_dir_all(group).unwrap();
    fs::write(format!("{group}/cpuset.mems"), "0").unwrap();
    let herd = Herd::new(8, &[]);
    fs::write(format!("{group}/cgroup.procs"), herd.pid().to_string()).unwrap();
    let pid = herd.pid().to_string();
    let line = refused(&["--pid", &pid, "--from", "0", "--to", "1"]);
    assert!(
        line.contains("cpuset of process") && line.contains("node 1"),
        "{line}"
    );
    fs::write("/sys/fs/cgroup/cgroup.procs", &pid).unwrap();
    // The kernel finds room on the account of who asks.
    let program = transhume();
    let program = program.get_program().to_str().unwrap();
    let inside =
        format!("echo $$ > {group}/cgroup.procs; exec {program} move --pid {pid} --from 0 --to 1");
    let output = Command::new("sh").args(["-c", &inside]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(line.contains("this process's own cpuset"), "{line}");
    herd.end();
    fs::remove_dir(group).unwrap();
}

fn nodes_that_are_none() {
    let herd = Herd::new(4, &[]);
    let pid = herd.pid().to_string();
    for (from, to, why) in [
        (
            "0",
            "7",
            "there is no node 7 that is online; nodes with memory are 0, 1, 2",
        ),
        ("7", "0", "there is no node 7"),
        ("0", "0", "node 0 is both"),
        ("0,1", "1", "node 1 is both"),
        ("all", "0,1,2", "none to move memory from"),
    ] {
        let line = refused(&["--pid", &pid, "--from", from, "--to", to]);
        assert!(line.contains(why), "{line}");
    }
    let line = refused(&["--pid", &pid, "--from", "0", "--to", "1", "--exchange"]);
    assert!(line.contains("--exchange needs --only"), "{line}");
    assert_eq!(herd.on_node(0).0, 4 << 20);
    herd.end();
}

fn processes_that_are_none() {
    let to = |pid: &str| refused(&["--pid", pid, "--from", "0", "--to", "1"]);
    assert!(to("2").contains("kernel thread"));
    assert!(to("4194304").contains("there is no process 4194304"));
    let mut zombie = Command::new("sh").args(["-c", "exit"]).spawn().unwrap();
    let pid = zombie.id().to_string();
    while !fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") Z ")
    {
        std::thread::yield_now();
    }
    assert!(to(&pid).contains("has ended and has no memory"));
    zombie.wait().unwrap();
    let herd = Herd::new(4, &[]);
    let pid = herd.pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let thread = threads
        .into_iter()
        .find(|thread| *thread != pid.to_string());
    let line = to(&thread.unwrap());
    assert!(
        line.contains(&format!("is a thread of process {pid}")),
        "{line}"
    );
    herd.end();
}

/// One that is not root may not look into a process of root's.
fn not_permitted() {
    use std::os::unix::process::CommandExt;
    let herd = Herd::new(4, &[]);
    let output = command(&herd.pid().to_string(), "0", "1")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert!(
        line.contains("not permitted to look into process"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    herd.end();
}
