//! The command line.

use std::collections::BTreeSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use transhume_copy::Reasons;
use transhume_model::{Bug, Case, Seed};
use transhume_process::{Select, Shares, UnknownSelect};
use transhume_region::PageSize;

use crate::table::width;

/// Moves memory pages between kinds of memory while the programs that use them keep running.
#[derive(Debug, Parser)]
#[command(name = "transhume", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Migrates live memory in several ways and shows what each step is worth
    Bench(Bench),
    /// Runs the engine on a simulated machine through the orders of its events, and looks whether any is wrong
    #[command(after_help = CHECK_EXIT, after_long_help = check_names())]
    Check(Check),
    /// Lists the copiers, here or of a running application, where it can change which is in use
    Engines(Engines),
    /// Shows where the memory of a process is
    Map(Map),
    /// Moves the memory of running processes from NUMA nodes to others
    #[command(after_help = MOVE_EXIT)]
    Move(Move),
    /// A process with memory that it uses and checks all the while, to be moved
    #[command(hide = true)]
    Herd(Herd),
    /// Shows the nodes of the machine and its memory tiers: how large, how far and how fast
    Nodes(Nodes),
    /// Says what batch size, copiers, threads and deferral would give, by a simulated machine
    Predict(Predict),
}

const MOVE_EXIT: &str = "Exit status: 0 everything is where it was to go; 3 some of it stayed, and the \
    table says why; 2 it was refused, nothing was done; 1 something failed.";

const CHECK_EXIT: &str = "Exit status: 0 all was tried, nothing was violated and every known bug was found; 1 something \
    was violated, which is shown step by step, or was not tried to the end, or a bug was not found; 2 it was refused, \
    or the seed is of another scene; 130 it was interrupted, and what was finished is shown.";

/// Orders by chance that are tried unless somebody says how many.
pub(crate) const RANDOM: u64 = 100_000;

/// What `check` has, by name, after what its exit status says.
fn check_names() -> String {
    let line = |name: &str, room: usize, about: &str| {
        let indent = " ".repeat(room + 2);
        // As wide as the rest of the help at most.
        let fold = textwrap::Options::new(width().min(100)).subsequent_indent(&indent);
        textwrap::fill(&format!("  {name:room$}{about}"), fold) + "\n"
    };
    let case = |case: &Case| line(case.name, 22, case.about);
    let cases: String = Case::ALL.iter().map(case).collect();
    let bug = |bug: Bug| line(bug.name(), 30, bug.case());
    let bugs: String = Bug::ALL.into_iter().map(bug).collect();
    format!(
        "{CHECK_EXIT}\n\nCases:\n{cases}\nKnown bugs, and the case in which each is looked for:\n{bugs}"
    )
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Only this case, and the bugs that are looked for in it
    #[arg(long, value_name = "NAME", value_parser = case)]
    pub(crate) case: Option<&'static Case>,
    /// Only small scenes, in all orders that differ in what anybody can see
    #[arg(long, conflicts_with_all = ["random", "seed"])]
    pub(crate) exhaustive: bool,
    #[arg(long, value_name = "N", help = format!("Only large scenes, in so many orders by chance in all, which the \
        cases share evenly [default: the small ones too, and {RANDOM}]"))]
    pub(crate) random: Option<NonZeroU64>,
    /// The seed of the first order by chance; with --case or --bug, and no --random, the one order
    /// to be shown, as `check` prints it of a violation
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<Seed>,
    /// Switches a known bug on, and looks for nothing else until it is found, first in all orders of
    /// the small scene and then by chance in the large one, a minute each
    #[arg(long, value_name = "NAME", value_parser = bug, conflicts_with_all = ["case", "exhaustive", "random"])]
    pub(crate) bug: Option<Bug>,
    /// Writes what was found as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

fn case(name: &str) -> Result<&'static Case, String> {
    Case::by_name(name).ok_or_else(|| {
        "there is no such case; cure: one that `transhume check --help` lists".to_owned()
    })
}

fn bug(name: &str) -> Result<Bug, String> {
    Bug::by_name(name).ok_or_else(|| {
        "there is no such bug; cure: one that `transhume check --help` lists".to_owned()
    })
}

#[derive(Debug, Args)]
pub(crate) struct Herd {
    /// How much memory
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) bytes: NonZeroU64,
    /// Where it is at first
    #[arg(long, value_name = "NODE")]
    pub(crate) node: u32,
    /// Where every second page of it is
    #[arg(long, value_name = "NODE")]
    pub(crate) second: Option<u32>,
    /// Size of its pages
    #[arg(long, value_name = "4k|2m", value_parser = page_size, default_value = "4k")]
    pub(crate) page_size: PageSize,
    /// Threads that use it
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(crate) threads: NonZeroUsize,
    /// More memory, that is filled and not used
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "beside_node")]
    pub(crate) beside: Option<NonZeroU64>,
    /// Where that is
    #[arg(long, value_name = "NODE")]
    pub(crate) beside_node: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Map {
    /// The process
    #[arg(long, value_name = "PID", value_parser = pid)]
    pub(crate) pid: i32,
    /// Shows it again every second until Ctrl-C, or the end of the process
    #[arg(long)]
    pub(crate) watch: bool,
    /// Writes it as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-", conflicts_with = "watch")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Move {
    /// The processes
    #[arg(long, value_name = "PID[,PID]", required = true, value_delimiter = ',', value_parser = pid)]
    pub(crate) pid: Vec<i32>,
    /// The nodes that memory leaves; `all` is all others
    #[arg(long, value_name = "NODE[,NODE]|all", value_parser = from)]
    pub(crate) from: From,
    /// Where it goes: a node, several by turns (1,2), or by share (1=3,2=1)
    #[arg(long, value_name = "NODE[=SHARE][,NODE..]")]
    pub(crate) to: Shares,
    /// Which memory: heap, stack, anon, shared, file, addresses START-END, file:PATH, which comes last
    /// because a path may have commas; may be repeated [default: all]
    #[arg(long, value_name = "SELECT[,SELECT]", value_parser = only)]
    pub(crate) only: Vec<Selects>,
    /// The most bytes that move, as in 500M or 2GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) limit: Option<NonZeroU64>,
    /// The most threads that move at once [default: half of the CPUs, up to 4]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// The most bytes a second, as in 500M or 2GiB
    #[arg(long, value_name = "BYTES", value_parser = bandwidth)]
    pub(crate) bandwidth: Option<NonZeroU64>,
    /// The longest that the process should wait for a page, as in 5ms
    #[arg(long, value_name = "TIME", value_parser = stall)]
    pub(crate) max_stall: Option<Duration>,
    /// Makes room on a full node with memory of the processes that is not selected, by turns
    #[arg(long)]
    pub(crate) exchange: bool,
    /// Moves what other processes map too; needs CAP_SYS_NICE
    #[arg(long)]
    pub(crate) include_shared: bool,
    /// Moves the processes that these have started too, also those started meanwhile
    #[arg(long)]
    pub(crate) follow_children: bool,
    /// Shows what would move, and moves nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Says how it goes about it, and why
    #[arg(long)]
    pub(crate) explain: bool,
    /// Writes the report as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

/// Parts of memory that one word names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selects(pub(crate) Vec<Select>);

fn only(list: &str) -> Result<Selects, UnknownSelect> {
    let mut selects = Vec::new();
    let mut rest = Some(list);
    while let Some(list) = rest {
        let (word, others) = match list.split_once(',') {
            Some((word, others)) if !list.starts_with("file:") => (word, Some(others)),
            _ => (list, None),
        };
        selects.push(word.parse()?);
        rest = others;
    }
    Ok(Selects(selects))
}

/// The nodes that memory leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// All that it does not go to.
    All,
    Nodes(BTreeSet<u32>),
}

fn from(list: &str) -> Result<From, String> {
    if list == "all" {
        return Ok(From::All);
    }
    let nodes = list.split(',').map(str::parse);
    let nodes = nodes.collect::<Result<Vec<u32>, _>>();
    let nodes = nodes.map_err(|_| "it is a list of nodes such as 0 or 0,2, or all".to_owned())?;
    let mut seen = BTreeSet::new();
    match nodes.into_iter().find(|&node| !seen.insert(node)) {
        Some(twice) => Err(format!("node {twice} is named twice")),
        None => Ok(From::Nodes(seen)),
    }
}

fn pid(text: &str) -> Result<i32, String> {
    let pid = text.parse().ok().filter(|&pid| pid > 0);
    pid.ok_or_else(|| "the number of a process is wanted".to_owned())
}

fn bytes(text: &str) -> Result<NonZeroU64, String> {
    let bytes = text.parse::<ByteSize>().ok();
    let bytes = bytes.and_then(|bytes| NonZeroU64::new(bytes.as_u64()));
    bytes.ok_or_else(|| "a number of bytes is wanted, as in 500M or 2GiB".to_owned())
}

fn bandwidth(text: &str) -> Result<NonZeroU64, String> {
    bytes(text.strip_suffix("/s").unwrap_or(text))
        .map_err(|_| "bytes a second are wanted, as in 500M or 2GiB".to_owned())
}

fn stall(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok();
    let time = time.filter(|time| !time.is_zero());
    time.ok_or_else(|| "a time is wanted, as in 500us or 5ms".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t = What::All)]
    pub(crate) what: What,
    /// Size of the pages; by default both, and 2m for `copy`
    #[arg(long, value_name = "4k|2m", value_parser = page_size)]
    pub(crate) page_size: Option<PageSize>,
    /// Pages of the region, or of the process [default: 64 MiB of 4k, 128 MiB of 2m]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) pages: Option<NonZeroUsize>,
    /// The most threads that copy at once [default: the CPUs]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What the region is made of: anonymous, memfd, hugetlb or file:PATH [default: anonymous; for
    /// `defer` memfd with pages of 4k, and hugetlb with 2m]
    #[arg(long, value_name = "BACKING")]
    pub(crate) backing: Option<Backing>,
    /// The copier of `flush` and `batch`
    #[arg(long, value_name = "NAME", default_value = "memcpy")]
    pub(crate) copier: String,
    /// Serves PATH as a running application does: `transhume engines --control PATH` then shows and
    /// changes the copier of `flush` and `batch` meanwhile
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Application threads that read and write all the while
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(crate) app_threads: NonZeroUsize,
    /// Runs of each variant, of which the median is shown; at least 5
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(5..=1000))]
    pub(crate) runs: u32,
    /// Small regions and short runs: a few seconds in all
    #[arg(long)]
    pub(crate) quick: bool,
    /// Writes the results as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

impl Bench {
    /// What regions are made of, but those of `defer` where nothing was said.
    pub(crate) fn backing(&self) -> &Backing {
        self.backing.as_ref().unwrap_or(&Backing::Anonymous)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Engines {
    /// Shows the copiers of the running application that serves PATH, which is in use, and what each did
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Has that application use another copier from now on
    #[arg(long = "use", value_name = "NAME", requires = "control")]
    pub(crate) select: Option<String>,
    /// For these reasons only, and memcpy for the others: user, demotion, promotion, compaction
    /// [default: all]
    #[arg(long, value_name = "REASON[,REASON]", requires = "select")]
    pub(crate) only: Option<Reasons>,
    /// Measures the copiers anew for `auto`, in 2.5 s; best while the machine does nothing else
    #[arg(long, conflicts_with = "control")]
    pub(crate) calibrate: bool,
    /// Writes the list as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Measures the latency and the bandwidth of each node, in a few seconds a node and up to a
    /// quarter of its free memory
    #[arg(long)]
    pub(crate) measure: bool,
    /// Writes the nodes as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Predict {
    /// What the steps cost: a FILE as `--json` writes it [default: measured here, in a few seconds]
    #[arg(long, value_name = "FILE", conflicts_with = "machine")]
    pub(crate) costs: Option<PathBuf>,
    /// What they cost on a machine of `--published`: user-space, offload, fast-copy or batch-flush
    #[arg(long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Shows what others have measured, beside what is predicted of their machines, and how far off it is;
    /// with `--machine`, of that one
    #[arg(long, conflicts_with_all = ["costs", "bench", "cpus", "nodes", "app_threads", "pages",
        "page_size", "batch", "threads", "channels", "waiting"])]
    pub(crate) published: bool,
    /// Shows what `transhume bench --json FILE` has measured, beside what is predicted, and how far off it is
    #[arg(long, value_name = "FILE", conflicts_with_all = ["machine", "cpus", "nodes", "pages", "page_size",
        "batch", "threads", "channels", "waiting"])]
    pub(crate) bench: Option<PathBuf>,
    /// CPUs of the simulated machine, up to 256 [default: those of this one]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) cpus: Option<NonZeroUsize>,
    /// NUMA nodes, among which the CPUs are divided; pages move from the first to the last
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(crate) nodes: NonZeroUsize,
    /// Application threads that read and write at random all the while, each on a CPU of its own; the
    /// other CPUs sleep [default: one for each CPU but the first]
    #[arg(long, value_name = "N")]
    pub(crate) app_threads: Option<usize>,
    /// Pages that move [default: 16 MiB of 4k, 128 MiB of 2m]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) pages: Option<NonZeroUsize>,
    /// Size of the pages
    #[arg(long, value_name = "4k|2m", value_parser = page_size, default_value = "4k")]
    pub(crate) page_size: PageSize,
    /// Pages of a batch [default: 1, 2, 4 and so on up to 2048 of 4k and 16 of 2m]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', value_parser = count)]
    pub(crate) batch: Vec<NonZeroUsize>,
    /// Threads that copy, the one that migrates among them [default: 2, 4 and so on up to the CPUs]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', value_parser = count)]
    pub(crate) threads: Vec<NonZeroUsize>,
    /// Channels of the copying device [default: 1, 2, 4 and so on up to 16, where there is a device]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', value_parser = count)]
    pub(crate) channels: Vec<NonZeroUsize>,
    /// Pages that wait for their switch at most, where it is deferred [default: a batch, eight and all]
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', value_parser = count)]
    pub(crate) waiting: Vec<NonZeroUsize>,
    /// Writes it as JSON to FILE, or to standard output and nothing else there
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// One page at a time against batches of several sizes
    Flush,
    /// Copiers and their threads, on one and on sixteen pages
    Copy,
    /// Batch size against total time, first page and stall
    Batch,
    /// Pages that trade places in place, against two migrations through free frames
    Exchange,
    /// The switch to the destination deferred, and made for many pages at once
    Defer,
    /// Ways to move the memory of a process at work between two nodes
    Move,
    /// All of these, and `move` where two nodes have memory
    All,
}

/// What a region is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Anonymous,
    Memfd,
    Hugetlb,
    File(PathBuf),
}

impl FromStr for Backing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "anonymous" => Ok(Self::Anonymous),
            "memfd" => Ok(Self::Memfd),
            "hugetlb" => Ok(Self::Hugetlb),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
                _ => Err("a backing is anonymous, memfd, hugetlb or file:PATH".to_owned()),
            },
        }
    }
}

impl Backing {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::Hugetlb => "hugetlb",
            Self::File(_) => "file",
        }
    }
}

fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_| "a whole number from 1 on is wanted".to_owned())
}

fn page_size(text: &str) -> Result<PageSize, String> {
    match text.to_ascii_lowercase().as_str() {
        "4k" => Ok(PageSize::Base),
        "2m" => Ok(PageSize::Huge),
        _ => Err("a page size is 4k or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_have_commas() {
        let Selects(selects) = only("heap,stack,file:/a,b").unwrap();
        assert_eq!(
            selects,
            [Select::Heap, Select::Stack, Select::File("/a,b".into())]
        );
        assert!(only("heap,").is_err() && only("").is_err());
    }
}
