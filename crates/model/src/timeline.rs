//! An order of steps, one column for each who acts.

use std::fmt;

use crate::actor::Event;

/// What was done in an order that violated something, step by step.
#[derive(Clone, Debug)]
pub struct Timeline {
    titles: Vec<String>,
    events: Vec<Event>,
}

const WIDTH: usize = 30;

impl Timeline {
    pub(crate) fn new(titles: Vec<String>, events: Vec<Event>) -> Self {
        Self { titles, events }
    }

    /// How many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// Breaks a text into lines that fit a column.
fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last().map_or(0, String::len);
        if last > 0 && last + 1 + word.len() > WIDTH {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who did nothing gets no column.
        let acts = |actor: usize| self.events.iter().any(|event| event.actor == actor);
        let actors: Vec<usize> = (0..self.titles.len())
            .filter(|&actor| acts(actor))
            .collect();
        write!(f, "step")?;
        for &actor in &actors {
            write!(f, "  {:WIDTH$}", self.titles[actor])?;
        }
        for (n, event) in self.events.iter().enumerate() {
            let column = actors.iter().position(|&actor| actor == event.actor);
            let indent = column.unwrap_or(0) * (WIDTH + 2);
            for (line, text) in lines(&event.text).into_iter().enumerate() {
                let number = if line == 0 {
                    (n + 1).to_string()
                } else {
                    String::new()
                };
                write!(f, "\n{number:>4}  {:indent$}{text}", "")?;
            }
        }
        Ok(())
    }
}
