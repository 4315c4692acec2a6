"""A program that runs two workers by itself, which no command line tells."""

import uvicorn

if __name__ == "__main__":
    uvicorn.run("tests.server.test_mounting:alone", factory=True, workers=2, port=0, ws="websockets-sansio")
