//! Processes that do something while their memory moves: fork, map and unmap, stop, exit.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use transhume_sys::numa::{NodeMemory, NodePages};

use crate::Case;
use crate::herd::{Herd, MIB};
use crate::program::{begin, command, ended, moves, transhume};
use crate::reasons::{let_go, live};

pub(crate) const CASES: &[Case] = &[
    ("lives::it_exits", it_exits),
    ("lives::it_is_stopped", it_is_stopped),
    ("lives::it_forks_maps_and_unmaps", it_forks_maps_and_unmaps),
    ("lives::children_are_followed", children_are_followed),
    ("lives::in_a_namespace", in_a_namespace),
    (
        "lives::it_executes_another_program",
        it_executes_another_program,
    ),
    ("lives::a_thousand_mappings", a_thousand_mappings),
    ("lives::a_name_that_is_no_text", a_name_that_is_no_text),
];

/// What a process that this test starts of itself does.
pub(crate) fn life(name: &str) -> Option<fn()> {
    Some(match name {
        "forked" => forked,
        "spliced" => spliced,
        "churning" => churning,
        "executing" => executing,
        "patched" => patched,
        "pooled" => pooled,
        "filed" => filed,
        "painted" => painted,
        "parental" => parental,
        _ => return None,
    })
}

fn memory() -> NodeMemory {
    let mut memory = NodeMemory::reserve(0, 4 << 20, NodePages::Base).unwrap();
    for (index, word) in memory.words_mut().iter_mut().enumerate() {
        *word = index as u64;
    }
    memory
}

/// Says where the memory is and waits until nobody wants it any more.
fn show(memory: &NodeMemory) {
    let range = memory.range();
    println!("{:#x}-{:#x}", range.start, range.end);
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let words = memory.shared_words().iter().enumerate();
    for (index, word) in words {
        assert_eq!(word.load(Relaxed), index as u64);
    }
}

/// Shares its memory with a child.
fn forked() {
    let memory = memory();
    // SAFETY: the child waits and exits, and touches nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: it waits for a signal.
            unsafe { libc::pause() };
        }
    }
    show(&memory);
    let child = Pid::from_raw(child).unwrap();
    kill_process(child, Signal::KILL).unwrap();
    rustix::process::waitpid(Some(child), WaitOptions::empty()).unwrap();
}

/// Has given eight pages to a pipe.
fn spliced() {
    let memory = memory();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let part = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(memory.range().start + (1 << 20)),
        iov_len: 8 * 4096,
    };
    // SAFETY: the pages are this process's, and nobody stores to them.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const part, 1, 0) };
    assert_eq!(spliced, 8 * 4096);
    show(&memory);
    drop(reader);
}

/// Maps, fills, checks and unmaps memory, and starts processes, until its input ends.
fn churning() {
    let memory = memory();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u8;
            while !over.load(Relaxed) {
                let some = vec![round; 2 << 20];
                assert!(some.iter().all(|&byte| byte == round));
                let child = Command::new("true").stdin(Stdio::null()).status();
                assert!(child.unwrap().success());
                round = round.wrapping_add(1);
            }
        });
        show(&memory);
        over.store(true, Relaxed);
    });
}

/// Becomes another program when it is told to.
fn executing() {
    use std::os::unix::process::CommandExt;
    let memory = memory();
    let range = memory.range();
    println!("{:#x}-{:#x}", range.start, range.end);
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
    let other = transhume()
        .args(["herd", "--node", "0", "--bytes", "8MiB"])
        .exec();
    panic!("{other}");
}

/// Has memory of the pool of huge pages.
fn pooled() {
    let (bytes, node) = (8 << 20, std::ptr::null_mut());
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    // SAFETY: the kernel finds room for it.
    let start = unsafe { libc::mmap(node, bytes, access, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    show_range(start.addr(), bytes);
}

/// Has mapped a file whose name is no simple one, alone.
fn filed() {
    let path = "/tmp/a, file";
    std::fs::write(path, vec![7; 4 << 20]).unwrap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let bytes = 4 << 20;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel finds room for it.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            access,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    show_range(start.addr(), bytes);
    std::fs::remove_file(path).unwrap();
}

/// Fills memory that is this process's, shows it, and checks it.
fn show_range(start: usize, bytes: usize) {
    let word = |at: usize| {
        let word = std::ptr::with_exposed_provenance::<AtomicUsize>(start + at);
        // SAFETY: the memory is mapped, and stays so.
        unsafe { &*word }
    };
    (0..bytes)
        .step_by(8)
        .for_each(|at| word(at).store(at, Relaxed));
    println!("{start:#x}-{:#x}", start + bytes);
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    for at in (0..bytes).step_by(8) {
        assert_eq!(word(at).load(Relaxed), at);
    }
}

/// Has its memory in a thousand mappings.
fn patched() {
    let memory = memory();
    for page in memory.range().step_by(2 * 4096) {
        let page = std::ptr::with_exposed_provenance_mut(page);
        // SAFETY: the memory is this process's, and nobody stores to it any more.
        let done = unsafe { libc::mprotect(page, 4096, libc::PROT_READ) };
        assert_eq!(done, 0);
    }
    show(&memory);
}

/// Has a name that is no text, and would paint a terminal red.
fn painted() {
    rustix::thread::set_name(c"a\xff\x1b[31m").unwrap();
    show(&memory());
}

/// Has two children, which have begun and sleep.
fn parental() {
    let memory = memory();
    let mut children = [(); 2].map(|()| {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
        sleep.spawn().unwrap()
    });
    for child in &children {
        let stat = format!("/proc/{}/stat", child.id());
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
    }
    show(&memory);
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Its memory goes with it; that is an answer and no failure.
fn it_exits() {
    let mut herd = Herd::new(32, &[]);
    // So slowly that it is killed long before all has gone, also on a slow machine.
    let mover = begin(
        herd.pid(),
        "0",
        "1",
        &["--only", &herd.range(), "--bandwidth", "1MiB/s"],
    );
    herd.wait_for_some_on(1);
    herd.kill();
    let report = ended(mover);
    assert_eq!(report.code, 3, "{report:?}");
    assert_eq!(report.only()["ended"], true);
    assert!(report.moved() < 32 * MIB);
}

fn it_is_stopped() {
    let herd = Herd::new(16, &[]);
    let pid = Pid::from_raw(i32::try_from(herd.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!((report.code, report.moved()), (0, 16 * MIB), "{report:?}");
    kill_process(pid, Signal::CONT).unwrap();
    herd.end();
}

/// It must not fail, nor miss what was there all the time, whatever comes and goes beside it.
fn it_forks_maps_and_unmaps() {
    let (child, range) = live("churning");
    for round in 0..6 {
        let (from, to) = (round % 2, (round + 1) % 2);
        let report = moves(child.id(), from, to, &["--threads", "2"]);
        assert!(matches!(report.code, 0 | 3), "{report:?}");
        let report = moves(child.id(), from, to, &["--only", &range]);
        // A child that was just being born shared it.
        let left = report.only()["left_bytes"].as_u64().unwrap();
        assert_eq!(
            left,
            report.stayed("shared") + report.stayed("pinned"),
            "{report:?}"
        );
    }
    let_go(child);
}

fn children_are_followed() {
    let (parent, _) = live("parental");
    let output = command(&parent.id().to_string(), "0", "1")
        .args(["--follow-children", "--include-shared", "--json", "-"])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = json["processes"].as_array().unwrap();
    assert_eq!(
        (processes.len(), output.status.code()),
        (3, Some(0)),
        "{json}"
    );
    let_go(parent);
}

/// A process has the number that it has where `transhume` runs.
fn in_a_namespace() {
    let program = transhume();
    let program = program.get_program().to_str().unwrap();
    // While it begins it is not where it will be.
    let inside = format!(
        "sleep 1000 & echo $!; until grep -q ') S ' /proc/$!/stat; do :; done; {program} move --pid $! --from 0 --to 1 --include-shared; echo $?; kill $!"
    );
    let own = Command::new("unshare")
        .args(["-p", "-f", "-m", "--mount-proc", "sh", "-c", &inside])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&own.stdout);
    assert!(
        text.starts_with("2\n") && text.ends_with("\n0\n"),
        "{text} {own:?}"
    );
    // Where /proc is another namespace's, its numbers mean other processes.
    let foreign = Command::new("unshare")
        .args(["-p", "-f", "sh", "-c", &inside])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&foreign.stderr);
    assert!(
        errors.contains("/proc shows another PID namespace"),
        "{foreign:?}"
    );
}

/// The old program's memory is gone, and the new one's is moved where it was to be.
fn it_executes_another_program() {
    let (mut child, _) = live("executing");
    let mover = begin(
        child.id(),
        "0",
        "1",
        &["--bandwidth", "2MiB/s", "--only", "anon"],
    );
    sleep(Duration::from_millis(500));
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let report = ended(mover);
    report.is_explained();
    assert!(matches!(report.code, 0 | 3), "{report:?}");
    assert!(report.only()["error"].is_null(), "{report:?}");
    // It has filled its memory when it answers by ending well.
    let report = moves(child.id(), 0, 1, &["--only", "anon"]);
    assert!(matches!(report.code, 0 | 3), "{report:?}");
    let_go(child);
}

/// Pages of many mappings go in one call.
fn a_thousand_mappings() {
    let (child, range) = live("patched");
    let report = moves(child.id(), 0, 1, &["--only", &range]);
    assert_eq!((report.code, report.moved()), (0, 4 << 20), "{report:?}");
    assert!(report.only()["calls"].as_u64().unwrap() <= 4, "{report:?}");
    let_go(child);
}

fn a_name_that_is_no_text() {
    let (child, range) = live("painted");
    let pid = child.id().to_string();
    let output = command(&pid, "0", "1")
        .args(["--only", &range])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("4.00 MiB moved") && !text.contains('\x1b'),
        "{text:?}"
    );
    let_go(child);
}
