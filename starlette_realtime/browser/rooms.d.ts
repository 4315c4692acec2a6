/** The rooms of one client: which there are, joining them on each link, and their end. */
export {};
