//! What is wrong is refused in one line, and nothing has changed.

use transhume_region::{
    BuildError, Builder, KernelAccess, Options, PageSize, Pins, Region, RegionError, Tier,
};

use crate::Case;
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("refusals::regions", &[], regions),
    Case("refusals::files", &[Need::Blind], files),
    Case("refusals::requests", &[Need::Move], requests),
    Case("refusals::more_than_fits", &[Need::Move], more_than_fits),
    Case(
        "refusals::too_many_mappings",
        &[Need::Blind],
        too_many_mappings,
    ),
    Case(
        "refusals::unprivileged",
        &[Need::Move, Need::Root],
        unprivileged,
    ),
];

fn refused(builder: Builder) -> String {
    let line = builder.build().unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

fn regions() {
    let node = || Tier::node("a", 0);
    let with = |tier| Region::builder().tier(tier).pages(4);
    assert!(refused(with(node()).pages(0)).contains("at least one page"));
    assert!(refused(Region::builder().pages(1)).contains("1 to 64 tiers, not 0"));
    assert!(refused(with(node()).tier(node())).contains("two tiers are named 'a'"));
    assert!(refused(with(Tier::node("n", 77))).contains("node 77 is not online"));
    assert!(refused(with(node().capacity(4096))).contains("holds 4096 bytes, less than"));
    assert!(refused(with(node().capacity(5000))).contains("not a multiple of the page size"));
    assert!(refused(with(node()).tier(Tier::memfd("m"))).contains("cannot be in one region"));
    assert!(refused(with(Tier::memfd("m"))).contains("Pins::Declared"));
    assert!(refused(with(Tier::hugetlb("h")).pins(Pins::Declared)).contains("2 MiB only"));
    assert!(refused(with(node()).pages(usize::MAX)).contains("more than an address space"));
    let huge = with(Tier::hugetlb("h"))
        .page_size(PageSize::Huge)
        .pages(1 << 22)
        .pins(Pins::Declared);
    assert!(refused(huge).contains("cure: sysctl vm.nr_hugepages="));
}

fn files() {
    let path = std::env::temp_dir().join(format!("transhume-refusal-{}", std::process::id()));
    std::fs::write(&path, "precious").unwrap();
    let on = |path: &std::path::Path| {
        Region::builder()
            .tier(Tier::file("f", path))
            .pages(4)
            .pins(Pins::Declared)
    };
    assert!(refused(on(&path)).contains("is not empty"));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    assert!(refused(on(&path.join("absent"))).contains("cannot open"));
    assert!(refused(on("/dev/null".as_ref())).contains("tier 'f'"));
    let twice = on(&path).tier(Tier::file("g", &path));
    assert!(refused(twice).contains("in use by another region"));
    let _ = std::fs::remove_file(&path);
}

fn requests() {
    let region = two_nodes(8).build().unwrap();
    let refused = |refused: Result<_, RegionError>| -> String {
        let line = refused
            .map(|_: transhume_region::Report<_>| ())
            .unwrap_err()
            .to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    };
    let options = Options::new();
    let unknown = refused(region.migrate(.., "warm", &options));
    assert_eq!(unknown, "no tier is named 'warm'; the tiers are near, far");
    assert!(refused(region.migrate(0..9, "far", &options)).contains("page 8 is outside"));
    assert!(refused(region.migrate(3..3, "far", &options)).contains("names no page"));
    assert!((0..8).all(|page| region.tier_of(page) == Ok("near")));
    assert!(region.tier_of(8).is_err());
}

fn more_than_fits() {
    let builder = Region::builder().tier(Tier::node("near", 0));
    let region = builder
        .tier(Tier::node("far", 0).capacity(4 * 4096))
        .pages(8)
        .build()
        .unwrap();
    let refused = region
        .migrate(0..5, "far", &Options::new())
        .unwrap_err()
        .to_string();
    assert_eq!(
        refused,
        "tier 'far' holds 4 pages, of which 0 are used: 5 more do not fit; move some away first"
    );
    assert!(
        region
            .migrate(0..4, "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    assert!(region.migrate(0..5, "far", &Options::new()).is_err());
}

fn too_many_mappings() {
    let pages = 200_000;
    let region = two_memfds(pages).build().unwrap();
    let scattered = (0..pages).step_by(2).collect::<Vec<_>>();
    match region.migrate(scattered, "far", &Options::new()) {
        Err(RegionError::TooManyMappings { needed, allowed }) => assert!(needed > allowed),
        other => panic!("{other:?}"),
    }
    assert_eq!(region.usage().mappings, 1);
    assert_eq!(region.usage().tiers[1].pages, 0);
}

/// In a child without privileges: refused with the cure, or served for one who promises not to make
/// system calls on the memory.
fn unprivileged() {
    // SAFETY: the child gives its privileges up, makes a region, and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = without_privileges();
        // SAFETY: it ends the child.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(
        (libc::WIFEXITED(status), libc::WEXITSTATUS(status)),
        (true, 0)
    );
}

fn without_privileges() -> i32 {
    // SAFETY: it changes the credentials of this process only.
    let dropped = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setgid(65534) == 0
            && libc::setuid(65534) == 0
    };
    if !dropped {
        return 10;
    }
    let unprivileged_allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
        .is_ok_and(|value| value.trim() == "1");
    match two_nodes(64).build() {
        Ok(_) if unprivileged_allowed => {}
        Err(BuildError::NoMechanism { cure, .. })
            if cure.contains("vm.unprivileged_userfaultfd") => {}
        _ => return 11,
    }
    let Ok(region) = two_nodes(64).kernel_access(KernelAccess::Never).build() else {
        return 12;
    };
    match region.migrate(.., "far", &Options::new()) {
        Ok(report) if report.is_complete() => 0,
        _ => 13,
    }
}
