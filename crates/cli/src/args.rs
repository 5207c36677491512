//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use transhume_region::PageSize;

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
    /// Lists the copiers, and whether this machine has them
    Engines(Engines),
    /// Shows the nodes of the machine and its memory tiers: how large, how far and how fast
    Nodes(Nodes),
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum, default_value_t = What::All)]
    pub(crate) what: What,
    /// Size of the pages; by default both, and 2m for `copy`
    #[arg(long, value_name = "4k|2m", value_parser = page_size)]
    pub(crate) page_size: Option<PageSize>,
    /// Pages of the region [default: 64 MiB of 4k, 128 MiB of 2m]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) pages: Option<NonZeroUsize>,
    /// The most threads that copy at once [default: the CPUs]
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// What the region is made of: anonymous, memfd, hugetlb or file:PATH
    #[arg(long, value_name = "BACKING", default_value = "anonymous")]
    pub(crate) backing: Backing,
    /// The copier of `flush` and `batch`
    #[arg(long, value_name = "NAME", default_value = "memcpy")]
    pub(crate) copier: String,
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

#[derive(Debug, Args)]
pub(crate) struct Engines {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// One page at a time against batches of several sizes
    Flush,
    /// Copiers and their threads, on one and on sixteen pages
    Copy,
    /// Batch size against total time, first page and stall
    Batch,
    /// All of these
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
