//! How a request is gone about.

use std::fmt::Write;

use indicatif::BinaryBytes;
use transhume_process::{Request, SLICE_PAGES};
use transhume_sys::numa::Shared;

use super::show::list;
use crate::table::{fold, width};

/// A line for each choice, and why.
pub(crate) fn request(request: &Request) -> String {
    let mut lines = vec![
        format!(
            "pages that are in memory and on node {} go to node {}; others are not submitted, because \
             each would end a batch of the kernel's and cost a shootdown",
            list(request.from.iter().copied()),
            request.to,
        ),
        "huge pages go by their head only, because of their other pages the kernel says that they are \
         busy; of folios between these sizes, which nobody shows, one page goes first"
            .to_owned(),
    ];
    if request.to.nodes().nth(1).is_some() {
        lines.push(
            "memory is dealt in pieces of 2 MiB by address, so that a page belongs to the same node every \
             time; each node gets a call of its own"
                .to_owned(),
        );
    }
    lines.push(match request.max_stall {
        Some(stall) => format!(
            "up to 512 base pages a call, fewer while calls take longer than {}; no access waits longer \
             than the call that moves its page",
            humantime::format_duration(stall)
        ),
        None if request.exchange => "512 base pages a call, by turns with the memory that makes room".to_owned(),
        None => format!(
            "up to {SLICE_PAGES} base pages a call, over which its own cost of 30 to 50 us is spread; the \
             kernel cuts off 512 at a time"
        ),
    });
    lines.push(format!(
        "{}, near the destination, on windows of the address space that nobody else works on{}",
        match request.threads.get() {
            1 => "1 thread".to_owned(),
            threads => format!("up to {threads} threads"),
        },
        if request.threads.get() > 1 {
            "; fewer while the last adds less than 40 % of its share"
        } else {
            ""
        }
    ));
    if let Some(rate) = request.bandwidth {
        lines.push(format!(
            "calls are spaced out to stay below {}/s",
            BinaryBytes(rate.get())
        ));
    }
    lines.push(match request.shared {
        Shared::Leave => "pages that other processes map as well stay".to_owned(),
        Shared::Move => "pages that other processes map as well move too".to_owned(),
    });
    lines.push(
        "what is in use gets ten passes; what stays is counted by its reason, and compared with the \
         kernel's own count at the end"
            .to_owned(),
    );
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{}", fold(&format!("- {line}"), width()));
    }
    text.push('\n');
    text
}
