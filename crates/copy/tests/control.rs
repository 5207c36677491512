//! The control socket as those meet it who are at its other end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use transhume_copy::control::{Answer, AskError, Control, ControlError, Request, ask};
use transhume_copy::{Choice, Reasons, Switch};

struct Served {
    folder: TempDir,
    switch: Arc<Switch>,
    control: Control,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let switch = Arc::new(Switch::default());
        let path = folder.path().join("copiers");
        let control = Control::serve(path, Arc::clone(&switch)).unwrap();
        Self {
            folder,
            switch,
            control,
        }
    }

    fn path(&self) -> &Path {
        self.control.path()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        stream
    }

    /// What comes back for these bytes, with nothing after them.
    fn says(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&mut stream)
    }

    fn show(&self) -> Answer {
        ask(self.path(), &Request::Show).unwrap()
    }

    fn select(&self, name: &str, only: &str) -> Result<Answer, AskError> {
        let request = Request::Use {
            name: name.to_owned(),
            only: only.parse().unwrap(),
        };
        ask(self.path(), &request)
    }
}

/// To the end, or to where the other side closed with something unread.
fn read_all(stream: &mut UnixStream) -> String {
    let (mut all, mut bytes) = (Vec::new(), [0; 1000]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => all.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn it_shows_and_changes_what_is_in_use() {
    let served = Served::new();
    let shown = served.show();
    assert_eq!(shown.pid, Some(std::process::id()));
    assert_eq!(
        (&*shown.in_use.name, shown.in_use.only),
        ("memcpy", Reasons::ALL)
    );
    assert_eq!(shown.before, None);
    let names = shown.engines.iter().map(|engine| &*engine.name);
    let known = transhume_copy::engines();
    assert!(names.eq(known.iter().map(|engine| engine.name)));

    let answer = served.select("threads:2:memcpy", "promotion").unwrap();
    assert_eq!(answer.before, Some(shown.in_use));
    assert_eq!(answer.in_use, served.switch.in_use());
    assert_eq!(answer.in_use.name, "threads:2:memcpy");
    assert_eq!(answer.in_use.only.to_string(), "promotion");
    assert_eq!(answer.copiers.len(), 2);

    let refused = served.select("mempcy", "all").unwrap_err().to_string();
    assert!(
        refused.starts_with("no copier is named 'mempcy'"),
        "{refused}"
    );
    assert_eq!(served.show().in_use, answer.in_use, "nothing was changed");
}

#[test]
fn bad_input_gets_one_line() {
    let served = Served::new();
    let long = [b'x'; 513];
    let endless = vec![b'x'; 1 << 20];
    for (bytes, why) in [
        (&b"\n"[..], "begins with 'transhume 1'"),
        (b"transhume 9 show\n", "version 1 and not 9"),
        (b"transhume 1 use\n", "wants the name"),
        (b"transhume 1 use threads:0\n", "must be 1 or more"),
        (b"\x00\xff\xfe\n", "not text"),
        (b"transhume 1 show", "ended before its line did"),
        (&long, "up to 512 bytes"),
    ] {
        let answer = served.says(bytes);
        assert!(answer.starts_with("transhume 1 error "), "{answer:?}");
        assert!(answer.contains(why) && answer.ends_with('\n'), "{answer:?}");
        assert_eq!(answer.lines().count(), 1, "{answer:?}");
    }
    // Who never stops is cut off, whether he reads or not.
    let mut stream = served.connect();
    while stream.write_all(&endless).is_ok() {}
    assert!(read_all(&mut stream).contains("up to 512 bytes"));
    assert_eq!(served.says(b""), "");
    assert_eq!(served.switch.in_use().name, "memcpy");
    // A line of 512 bytes with its end is not too long.
    let mut longest = b"transhume 1 show".to_vec();
    longest.resize(511, b' ');
    longest.push(b'\n');
    assert!(served.says(&longest).starts_with("transhume 1 ok\n"));
}

/// More than are served at once connect and say half a line or nothing, or do not fetch the answer.
#[test]
fn those_who_hang_do_not_hold_up_the_others() {
    let served = Served::new();
    let hanging = (0..120).map(|n| {
        let mut stream = served.connect();
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"transhume 1 sh").unwrap(),
            _ => stream.write_all(b"transhume 1 show\n").unwrap(),
        }
        stream
    });
    let hanging = hanging.collect::<Vec<_>>();
    assert_eq!(served.show().in_use.name, "memcpy");
    for (n, mut stream) in hanging.into_iter().enumerate() {
        let answer = read_all(&mut stream);
        if n % 3 == 2 {
            assert!(answer.ends_with("\nend\n"), "{n}: {answer}");
        } else {
            assert!(answer.contains("no line within 2 seconds"), "{n}: {answer}");
        }
    }
}

#[test]
fn many_ask_and_change_at_once() {
    let served = Served::new();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let served = &served;
            scope.spawn(move || {
                for _ in 0..20 {
                    let name = ["memcpy", "threads:2:memcpy"][n % 2];
                    if n < 4 {
                        served.show();
                    } else {
                        assert_eq!(served.select(name, "all").unwrap().in_use.name, name);
                    }
                }
            });
        }
    });
}

#[test]
fn the_file_is_its_owners_alone_and_goes_with_it() {
    let served = Served::new();
    let file = fs::symlink_metadata(served.path()).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let path = served.path().to_owned();
    drop(served.control);
    assert!(!path.exists());
    assert_eq!(fs::read_dir(served.folder.path()).unwrap().count(), 0);
    assert!(matches!(ask(&path, &Request::Show), Err(AskError::Absent)));
}

/// At no time is there a file that others may open.
#[test]
fn it_is_never_there_with_another_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copiers");
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                if let Ok(file) = fs::symlink_metadata(&path) {
                    assert_eq!(file.permissions().mode() & 0o777, 0o600);
                    seen += 1;
                }
            }
            seen
        });
        for _ in 0..200 {
            drop(Control::serve(&path, Arc::default()).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    assert!(seen > 0);
}

#[test]
fn only_a_stale_socket_is_replaced() {
    let served = Served::new();
    let again = Control::serve(served.path(), Arc::default()).unwrap_err();
    assert!(matches!(again, ControlError::InUse { .. }), "{again}");
    assert_eq!(served.show().in_use.name, "memcpy");

    let file = served.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let refused = Control::serve(&file, Arc::default()).unwrap_err();
    assert!(
        matches!(refused, ControlError::NotASocket { .. }),
        "{refused}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(matches!(
        ask(&file, &Request::Show),
        Err(AskError::NotASocket)
    ));

    let link = served.folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(Control::serve(&link, Arc::default()).is_err());
    assert!(link.is_symlink() && file.exists());

    let stale = served.folder.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let nobody = ask(&stale, &Request::Show).unwrap_err();
    assert!(matches!(nobody, AskError::NobodyListens), "{nobody}");
    let control = Control::serve(&stale, Arc::default()).unwrap();
    assert!(ask(control.path(), &Request::Show).is_ok());
}

#[test]
fn a_successors_socket_is_not_removed() {
    let served = Served::new();
    let path = served.path().to_owned();
    fs::remove_file(&path).unwrap();
    let successor = Control::serve(&path, Arc::default()).unwrap();
    drop(served.control);
    assert!(ask(successor.path(), &Request::Show).is_ok());
}

/// Of many who begin at once where a stale socket lies, one has it.
#[test]
fn one_of_many_takes_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copiers");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let begin = std::sync::Barrier::new(8);
        let controls = std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| {
                scope.spawn(|| {
                    begin.wait();
                    Control::serve(&path, Arc::default())
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let mut serving = controls.into_iter().filter_map(|control| match control {
            Ok(control) => Some(control),
            Err(ControlError::InUse { .. }) => None,
            Err(other) => panic!("{other}"),
        });
        let one = serving.next().unwrap();
        assert!(serving.next().is_none());
        assert!(ask(one.path(), &Request::Show).is_ok());
    }
}

#[test]
fn paths_that_cannot_be_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent/copiers");
    let long = folder.path().join("x".repeat(120));
    let paths: [PathBuf; 4] = [absent, long, folder.path().to_owned(), PathBuf::new()];
    for path in paths {
        let line = Control::serve(&path, Arc::default())
            .unwrap_err()
            .to_string();
        assert!(!line.contains('\n'), "{line}");
        assert!(ask(&path, &Request::Show).is_err());
    }
}

/// Somebody else's socket, or one of another protocol.
#[test]
fn what_is_no_answer_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    for reply in [
        "",
        "HTTP/1.1 400\r\n",
        "transhume 1 ok\nin-use\tmemcpy\tall\n",
    ] {
        let path = folder.path().join("other");
        let listener = UnixListener::bind(&path).unwrap();
        let answered = std::thread::scope(|scope| {
            let answered = scope.spawn(|| ask(&path, &Request::Show));
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 100]).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            drop(stream);
            answered.join().unwrap()
        });
        assert!(matches!(answered, Err(AskError::NotWhole)), "{answered:?}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_change_is_there_for_all_who_share_the_switch() {
    let served = Served::new();
    served.select("threads:3:memcpy", "demotion").unwrap();
    let before = served
        .switch
        .select(Choice::named("memcpy").unwrap())
        .unwrap();
    assert_eq!(before.copier.name(), "threads:3:memcpy");
    assert_eq!(before.only.to_string(), "demotion");
    assert_eq!(served.show().in_use.name, "memcpy");
}
