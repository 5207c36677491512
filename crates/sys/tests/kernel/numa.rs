//! Policy and migration between nodes.

use transhume_sys::numa::{
    self, BindFlags, NodeFrames, NodeMemory, NodePages, PageStatus, Policy, PolicyKind, Shared,
    ThreadPolicy, migrate_pages, move_pages, node_at, nodes_with_memory, policy_at, query_pages,
};
use transhume_sys::pagemap::{PageEntry, Pagemap};
use transhume_sys::{Errno, Pid};

use crate::common::{Needs, Pages, Suite, all, page_size};

pub(crate) fn add(suite: &mut Suite) {
    suite.test("numa::query_of_this_process", numa(), query_of_this_process);
    suite.test(
        "numa::move_to_where_they_are",
        numa(),
        move_to_where_they_are,
    );
    suite.test("numa::errors", numa(), errors);
    suite.test(
        "numa::frames_are_on_nodes",
        all([numa(), frames()]),
        frames_are_on_nodes,
    );
    suite.test("numa::policies", numa(), policies);
    suite.test(
        "numa::move_to_another_node",
        all([numa(), two_nodes()]),
        move_to_another_node,
    );
    suite.test(
        "numa::migrate_to_another_node",
        all([numa(), two_nodes()]),
        migrate_to_another_node,
    );
}

fn numa() -> Needs {
    let nodes = nodes_with_memory().map_err(|error| error.to_string())?;
    if nodes.is_empty() {
        return Err("no node has memory".to_owned());
    }
    query_pages(None, &[], &mut []).map_err(|error| error.to_string())
}

fn two_nodes() -> Needs {
    match nodes_with_memory()
        .map_err(|error| error.to_string())?
        .len()
    {
        0 | 1 => Err("a single node has memory".to_owned()),
        _ => Ok(()),
    }
}

/// Whether this process is told the frames of pages, and where they are.
fn frames() -> Needs {
    NodeFrames::here().map_err(|error| error.to_string())?;
    let pages = Pages::filled(1);
    match entries(pages.addr(0), 1)[0].frame() {
        0 => Err("only CAP_SYS_ADMIN is told frames".to_owned()),
        _ => Ok(()),
    }
}

fn entries(address: usize, count: usize) -> Vec<PageEntry> {
    let mut entries = vec![PageEntry::default(); count];
    let first = (address / page_size()) as u64;
    let read = Pagemap::open_self().unwrap().entries(first, &mut entries);
    assert_eq!(read, Ok(count));
    entries
}

fn addresses(pages: &Pages, count: usize) -> Vec<usize> {
    (0..count).map(|index| pages.addr(index)).collect()
}

fn query_of_this_process() {
    let pages = Pages::new(4);
    pages.write(0, 1);
    pages.write(2, 1);
    let mut status = [PageStatus::UNKNOWN; 4];
    query_pages(None, &addresses(&pages, 4), &mut status).unwrap();
    let nodes = nodes_with_memory().unwrap();
    for present in [status[0], status[2]] {
        assert!(nodes.contains(&present.node().unwrap()), "{present:?}");
    }
    for absent in [status[1], status[3]] {
        assert!(
            matches!(absent.errno(), Some(Errno::NOENT | Errno::FAULT)),
            "{absent:?}"
        );
    }
    // By number it is the same.
    let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
    let mut again = [PageStatus::UNKNOWN; 4];
    query_pages(own, &addresses(&pages, 4), &mut again).unwrap();
    assert_eq!(again, status);
    assert_eq!(node_at(pages.addr(0)).unwrap(), status[0].node().unwrap());
}

fn move_to_where_they_are() {
    let pages = Pages::filled(3);
    let node = node_at(pages.addr(0)).unwrap();
    let mut status = [PageStatus::UNKNOWN; 3];
    let list = addresses(&pages, 3);
    let moved = move_pages(None, &list, &[node; 3], &mut status, Shared::Leave).unwrap();
    assert_eq!((moved.not_attempted, moved.left), (0, 0));
    assert!(
        status.iter().all(|status| status.node() == Some(node)),
        "{status:?}"
    );
}

/// The frames of pages are where the kernel says that the pages are, on each node.
fn frames_are_on_nodes() {
    const COUNT: usize = 300;
    let frames = NodeFrames::here().unwrap();
    for node in nodes_with_memory().unwrap() {
        let bytes = COUNT * page_size();
        let mut memory = NodeMemory::reserve(node, bytes, NodePages::Base).unwrap();
        memory.words_mut().fill(7);
        let start = memory.range().start;
        let list = (0..COUNT).map(|index| start + index * page_size());
        let mut status = [PageStatus::UNKNOWN; COUNT];
        query_pages(None, &list.collect::<Vec<_>>(), &mut status).unwrap();
        for (entry, status) in entries(start, COUNT).into_iter().zip(status) {
            let (around, node) = frames.around(entry.frame()).unwrap();
            assert_eq!(Some(node), status.node());
            assert!(around.contains(&entry.frame()));
        }
    }
}

fn errors() {
    let pages = Pages::filled(2);
    let list = addresses(&pages, 2);
    let mut status = [PageStatus::UNKNOWN; 2];
    let short = move_pages(None, &list, &[0], &mut status, Shared::Leave).unwrap_err();
    assert_eq!(short.errno, Errno::INVAL);
    assert_eq!(short.range, Some(pages.range(0..2)));
    let nowhere = move_pages(None, &list, &[1023, 1023], &mut status, Shared::Leave).unwrap_err();
    assert_eq!(nowhere.errno, Errno::NODEV);
    assert!(status.iter().all(|status| status.is_unknown()));
    let nobody = Pid::from_raw(i32::MAX);
    assert_eq!(
        query_pages(nobody, &list, &mut status).unwrap_err().errno,
        Errno::SRCH
    );
    let nothing = migrate_pages(nobody, &[0], &[0]).unwrap_err();
    assert_eq!((nothing.errno, nothing.range), (Errno::SRCH, None));
    // Only root is told that there is no such node.
    let nowhere = migrate_pages(None, &[0], &[1023]).unwrap_err();
    assert!(
        matches!(nowhere.errno, Errno::INVAL | Errno::PERM),
        "{nowhere}"
    );
    let far = migrate_pages(None, &[0], &[5000]).unwrap_err();
    assert_eq!(far.errno, Errno::INVAL);
    let far = numa::mbind(pages.all(), Policy::Bind(&[5000]), BindFlags::empty()).unwrap_err();
    assert_eq!(far.errno, Errno::INVAL);
}

fn policies() {
    let node = nodes_with_memory().unwrap()[0];
    let pages = Pages::new(4);
    assert_eq!(policy_at(pages.addr(0)).unwrap().kind, PolicyKind::Default);
    numa::bind(pages.range(0..2), node).unwrap();
    let report = policy_at(pages.addr(1)).unwrap();
    assert_eq!((report.kind, report.nodes), (PolicyKind::Bind, vec![node]));
    assert_eq!(policy_at(pages.addr(2)).unwrap().kind, PolicyKind::Default);
    numa::mbind(pages.all(), Policy::Preferred(node), BindFlags::MOVE).unwrap();
    assert_eq!(
        policy_at(pages.addr(3)).unwrap().kind,
        PolicyKind::Preferred
    );
    numa::mbind(pages.all(), Policy::Interleave(&[node]), BindFlags::empty()).unwrap();
    assert_eq!(
        policy_at(pages.addr(3)).unwrap().kind,
        PolicyKind::Interleave
    );
    numa::mbind(pages.all(), Policy::Default, BindFlags::empty()).unwrap();
    let policy = ThreadPolicy::bind(node).unwrap();
    pages.write(0, 1);
    assert_eq!(node_at(pages.addr(0)).unwrap(), node);
    // The policy of the thread is not one of the memory.
    assert_eq!(policy_at(pages.addr(0)).unwrap().kind, PolicyKind::Default);
    drop(policy);
    assert_eq!(policy_at(pages.addr(0)).unwrap().kind, PolicyKind::Default);
    assert_eq!(ThreadPolicy::bind(1023).unwrap_err().errno, Errno::INVAL);
}

fn move_to_another_node() {
    let nodes = nodes_with_memory().unwrap();
    let pages = Pages::new(8);
    numa::bind(pages.all(), nodes[0]).unwrap();
    for index in 0..7 {
        pages.write(index, 1);
    }
    let list = addresses(&pages, 8);
    let mut status = [PageStatus::UNKNOWN; 8];
    let moved = move_pages(None, &list, &[nodes[1]; 8], &mut status, Shared::Leave).unwrap();
    assert_eq!(moved.not_attempted, 0);
    assert!(
        status[..7]
            .iter()
            .all(|status| status.node() == Some(nodes[1])),
        "{status:?}"
    );
    assert!(status[7].errno().is_some());
    assert_eq!(pages.read(6), 1);
    assert_eq!(pages.mapping.len(), 8 * page_size());
}

/// All memory of this test's process goes, and comes back; its pages among them.
fn migrate_to_another_node() {
    let nodes = nodes_with_memory().unwrap();
    let pages = Pages::new(7);
    numa::bind(pages.all(), nodes[0]).unwrap();
    for index in 0..7 {
        pages.write(index, 1);
    }
    let list = addresses(&pages, 7);
    for (from, to) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        // How many it leaves of the rest is not for us to say.
        let _left = migrate_pages(None, &[from], &[to]).unwrap();
        let mut status = [PageStatus::UNKNOWN; 7];
        query_pages(None, &list, &mut status).unwrap();
        assert_eq!(status, [PageStatus::on_node(to); 7]);
        assert_eq!(pages.read(6), 1);
    }
}
